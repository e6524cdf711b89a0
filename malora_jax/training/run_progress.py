"""Progress of one run: batches, metrics, validation and checkpoints around its training steps.

The training loop of a single run and the joint loop of several runs both use it.

The order of operations is fixed. Each iteration takes a batch, dispatches step n to the device, and
then reports the metrics of step n - 1, while the device computes. If an evaluation or a checkpoint
is due after step n, step n is reported as well, with the evaluation, and then the state is saved.
The next batch is taken only after the save, so a checkpoint's state always matches its data
position.
"""

import functools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from malora_jax.data import RowStreams
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.goodput import GoodputRecorder
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.validation import (
    VALIDATION_LOSS,
    ValidationLoss,
    evaluations_without_progress,
)


class RunProgress:
    """Progress of one run, with the work that surrounds its training steps.

    The object reads batches, writes the metrics of each step, evaluates and saves the state, and
    decides when the run ends.

    Attributes:
        setup: Config, models and data of the run.
        workdir: Directory of the run.
        data: Iterator over training batches; its next batch belongs to the next step.
        writer: Writer of the metrics.
        checkpoints: Checkpoints of the run.
        goodput: Recorder of wall-clock time by phase.
        step: Number of the newest step that was started.
        earlier_train_time: Seconds of training in earlier starts of the run.
    """

    def __init__(
        self,
        setup: Setup,
        workdir: pathlib.Path,
        data: RowStreams,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        goodput: GoodputRecorder,
        step: int,
    ):
        """Set the progress to the point after `step`.

        The training time and the numbers of tokens and examples continue from the writer's last
        record.
        """
        self.setup, self.workdir, self.data, self.writer = setup, workdir, data, writer
        self.checkpoints, self.goodput, self.step = checkpoints, goodput, step
        self._tasks = [split.task_name for split in setup.splits]
        past = writer.records[-1] if writer.records else {}
        self._train_time = self.earlier_train_time = past.get('train_time_s', 0.0)
        self._tokens = past.get('total_tokens', 0)
        self._drawn_G = np.array([past.get(f'examples/{task}', 0) for task in self._tasks])
        self._evaluations_without_progress = evaluations_without_progress(writer.records)
        self._clock = time.perf_counter()

    @property
    def is_at_end(self) -> bool:
        """True if the last step was started, or if early stopping ended the run."""
        return self.step >= self.setup.steps or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        """Decision of early stopping: True if the run ends before its last step.

        It ends when the last `training.patience` evaluations did not lower the validation loss.
        """
        patience = self.setup.run.training.patience
        return 0 < patience <= self._evaluations_without_progress

    @property
    def is_eval_or_save_due(self) -> bool:
        """True if the newest step is followed by an evaluation or a checkpoint."""
        return self._evaluates_after(self.step) or self._saves_after(self.step)

    def next_batch(self) -> Mapping[str, np.ndarray]:
        """Return the batch of the next step, with the rows of all its micro-batches."""
        with self.goodput.phase('data wait'):
            return next(self.data)

    def start_step(self) -> None:
        """Count the next step as started, and record the time of its start."""
        self.step += 1
        self.goodput.record_step(self.step)

    def start_clock(self) -> None:
        """Restart the step timer, so that the time until now does not count as training time."""
        self._clock = time.perf_counter()

    def report(
        self, step: int, metrics: Mapping[str, jax.Array], state: TrainState | None = None
    ) -> dict[str, float]:
        """Wait for the metrics of a step, evaluate the state if that is due, and write a record.

        Args:
            step: Number of the step.
            metrics: Metrics of the step, from the training step.
            state: State after the step; None if a later step has already replaced it.

        Returns:
            The record of the step.

        Raises:
            FloatingPointError: A loss or the gradient is not finite.
        """
        record = self._record(step, jax.device_get(metrics))
        if state is not None and self._validation and self._evaluates_after(step):
            with self.goodput.phase('evaluate'):
                record |= self._validation(state.variables(self.setup.base.params))
        self._check_skipped(record)
        check_finite(record)
        # JSON cannot represent infinities and NaN.
        self.writer.write({k: value for k, value in record.items() if math.isfinite(value)})
        if VALIDATION_LOSS in record:
            self._evaluations_without_progress = evaluations_without_progress(self.writer.records)
        return record

    def save(self, state: TrainState, force: bool = False) -> None:
        """Save the state after the last reported step, if a checkpoint is due.

        A checkpoint is due every `training.checkpoint_every` steps, at the lowest validation loss
        so far, and at the end of the run.

        Args:
            state: State after the last reported step.
            force: Whether to save even if no checkpoint is due, and to wait until it is written.

        Raises:
            OSError: The checkpoint, or the one before it, cannot be written.
        """
        record, best = self.writer.records[-1], self.checkpoints.best
        loss = record.get(VALIDATION_LOSS)
        is_best = loss is not None and (best is None or loss <= best.loss)
        is_end = force or record['step'] == self.setup.steps or self.is_stopped_early
        if is_best or is_end or self._saves_after(record['step']):
            with self.goodput.phase('save'):
                self.writer.push()
                self.checkpoints.save(state, self.data, loss)
                if is_end:
                    self.checkpoints.wait()

    @functools.cached_property
    def _validation(self) -> ValidationLoss | None:
        return ValidationLoss(self.setup) if self.setup.run.training.evaluate_every else None

    def _evaluates_after(self, step: int) -> bool:
        every = self.setup.run.training.evaluate_every
        return every > 0 and (step % every == 0 or step == self.setup.steps)

    def _saves_after(self, step: int) -> bool:
        every = self.setup.run.training.checkpoint_every
        return step % every == 0 or step == self.setup.steps

    def _check_skipped(self, record: Mapping[str, float]) -> None:
        """Check that not too many consecutive steps were skipped.

        A step is skipped if its loss or its gradient is not finite.

        Raises:
            FloatingPointError: More consecutive steps than `training.skip_nonfinite` were skipped.
        """
        if not record.get('skipped'):
            return
        max_skipped = self.setup.run.training.skip_nonfinite
        last = self.writer.records[-max_skipped:]
        if len(last) == max_skipped and all(each['skipped'] for each in last):
            raise FloatingPointError(
                f'{max_skipped + 1} steps in a row, up to step {record["step"]}, had a loss or '
                f'gradient that is not finite; training.skip_nonfinite allows {max_skipped}.'
            )

    def _record(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Return the record of a step, one line of `metrics.jsonl`.

        Tasks without an answer token in the batch have no loss in the record.

        The duration of a step, from which `tokens_per_second` is computed, is measured from the
        previous report to this one. A step is usually reported only after the next step was
        dispatched. On some devices, such as CPUs, a dispatch call returns only when the computation
        is done. There, after a start or a save, two steps are computed before the first report. The
        duration of the first reported step then includes the next step.

        Args:
            step: Number of the step.
            metrics: Metrics of the step, on the host.
        """
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._train_time += seconds
        self._tokens += int(metrics['tokens'])
        self._drawn_G += metrics.pop('examples')
        drawn = {
            f'examples/{split.task_name}': int(count)
            for split, count in zip(self.setup.splits, self._drawn_G, strict=True)
            if split.train
        }
        nll_G, tokens_G = metrics.pop('task_nll'), metrics.pop('task_tokens')
        by_task = {
            f'loss/{task}': float(nll / tokens)
            for task, nll, tokens in zip(self._tasks, nll_G, tokens_G, strict=True)
            if tokens
        }
        return {
            'step': step,
            **{name: float(value) for name, value in metrics.items()},
            **by_task,
            **drawn,
            'epoch': sum(drawn.values()) / self.setup.epoch_examples,
            'tokens_per_second': float(metrics['tokens']) / seconds,
            'total_tokens': self._tokens,
            'train_time_s': self._train_time,
        }


def check_finite(record: Mapping[str, float]) -> None:
    """Check that the losses and the gradient norm of a step's record are finite.

    The training loss and the gradient norm of a skipped step are not checked.

    Raises:
        FloatingPointError: A value is not finite; the message names it and the step.
    """
    own = () if record.get('skipped') else ('loss', 'gradient_norm')
    for name in (*own, VALIDATION_LOSS):
        if not math.isfinite(record.get(name, 0.0)):
            raise FloatingPointError(
                f'The {name} is {record[name]} at step {record["step"]}, which was not saved. '
                'Lower optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
            )

"""The progress of one run: what it does around its training steps, wherever these are computed.

The order is fixed: evaluate, save, take the batch, step, report. The data iterator moves only after
a save, so a checkpoint's state and data position belong together; step n is reported once step
n + 1 has been handed to the device, or before an evaluation or a save.
"""

import functools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from malora_jax.data import RowStreams
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.goodput import Goodput
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.validation import LOSS, Validation, evaluations_without_progress


class RunProgress:
    """Reads the batches of a run, reports, evaluates and saves its steps, and says when it ends.

    Attributes:
        setup: The run's parts.
        workdir: The run's directory.
        data: Training batches; the next one belongs to the next step.
        writer: Writer of the metrics.
        checkpoints: Checkpoints of the run.
        goodput: Recorder of where the time goes.
        step: Number of the newest step that was started.
        earlier_train_time: Training time before this start of the run, in seconds.
    """

    def __init__(
        self,
        setup: Setup,
        workdir: pathlib.Path,
        data: RowStreams,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        goodput: Goodput,
        step: int,
    ):
        """Resumes a run after `step`, from the records that the writer holds."""
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
        """Whether the last step was started, or early stopping ended the run."""
        return self.step >= self.setup.steps or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for `training.patience` evaluations."""
        patience = self.setup.run.training.patience
        return 0 < patience <= self._evaluations_without_progress

    @property
    def is_due(self) -> bool:
        """Whether the state after the newest step is evaluated or saved."""
        return self._evaluates_after(self.step) or self._saves_after(self.step)

    def next_batch(self) -> Mapping[str, np.ndarray]:
        """Return the rows of the next step."""
        with self.goodput.phase('data wait'):
            return next(self.data)

    def start_step(self) -> None:
        """Record that the next step starts."""
        self.step += 1
        self.goodput.step(self.step)

    def start_clock(self) -> None:
        """Exclude the time until now from the time of the next step."""
        self._clock = time.perf_counter()

    def report(
        self, number: int, metrics: Mapping[str, jax.Array], state: TrainState | None = None
    ) -> dict[str, float]:
        """Wait for a step's metrics, check them and write them.

        Args:
            number: The step.
            metrics: Its metrics.
            state: State after the step, to be evaluated if that is due; None if there is a newer
                one.

        Returns:
            The record of the step.

        Raises:
            FloatingPointError: A loss or its gradient is not finite.
        """
        record = self._record(number, jax.device_get(metrics))
        if state is not None and self._validation and self._evaluates_after(number):
            with self.goodput.phase('evaluate'):
                record |= self._validation(state.variables(self.setup.base.params))
            tqdm.tqdm.write(f'Step {number}: validation loss {record[LOSS]:.4f}.')
        self._check_skipped(record)
        check_finite(record)
        # JSON has no word for what is not finite.
        self.writer.write({k: value for k, value in record.items() if math.isfinite(value)})
        if LOSS in record:
            self._evaluations_without_progress = evaluations_without_progress(self.writer.records)
        return record

    def save(self, state: TrainState, always: bool = False) -> None:
        """Save the state after the step that was reported last, if a checkpoint is due.

        It is due after regular numbers of steps, if the validation loss is the lowest so far, and
        at the end of the run.

        Args:
            state: The state.
            always: Whether to save in any case, and wait until the checkpoint is written.
        """
        record, best = self.writer.records[-1], self.checkpoints.best
        loss = record.get(LOSS)
        is_best = loss is not None and (best is None or loss <= best.loss)
        is_end = always or record['step'] == self.setup.steps or self.is_stopped_early
        if is_best or is_end or self._saves_after(record['step']):
            with self.goodput.phase('save'):
                self.writer.push()
                self.checkpoints.save(state, self.data, loss)
                if is_end:
                    self.checkpoints.wait()

    @functools.cached_property
    def _validation(self) -> Validation | None:
        return Validation(self.setup) if self.setup.run.training.evaluate_every else None

    def _evaluates_after(self, number: int) -> bool:
        every = self.setup.run.training.evaluate_every
        return every > 0 and (number % every == 0 or number == self.setup.steps)

    def _saves_after(self, number: int) -> bool:
        every = self.setup.run.training.checkpoint_every
        return number % every == 0 or number == self.setup.steps

    def _check_skipped(self, record: Mapping[str, float]) -> None:
        """Checks that not too many steps in a row were left out.

        Raises:
            FloatingPointError: they were.
        """
        if not record.get('skipped'):
            return
        most = self.setup.run.training.skip_nonfinite
        last = self.writer.records[-most:]
        if len(last) == most and all(each['skipped'] for each in last):
            raise FloatingPointError(
                f'{most + 1} steps in a row, up to step {record["step"]}, had a loss or gradient '
                f'that is not finite; training.skip_nonfinite allows {most}.'
            )

    def _record(self, number: int, metrics: dict[str, Any]) -> dict[str, float]:
        """One line of metrics.jsonl; a task without a token in the batch has no loss in it.

        A step's time is what passed since the report before. Where handing a step to the device
        waits for it, as on CPU, the first one after a start or a save counts the second's too.
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
            'step': number,
            **{name: float(value) for name, value in metrics.items()},
            **by_task,
            **drawn,
            'epoch': sum(drawn.values()) / self.setup.epoch_examples,
            'tokens_per_second': float(metrics['tokens']) / seconds,
            'total_tokens': self._tokens,
            'train_time_s': self._train_time,
        }


def check_finite(record: Mapping[str, float]) -> None:
    """Checks the losses and the gradient of a step's record.

    Raises:
        FloatingPointError: the first that is not finite, with the step's number.
    """
    own = () if record.get('skipped') else ('loss', 'gradient_norm')
    for name in (*own, LOSS):
        if not math.isfinite(record.get(name, 0.0)):
            raise FloatingPointError(
                f'The {name} is {record[name]} at step {record["step"]}; it was not saved. Lower '
                'optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
            )

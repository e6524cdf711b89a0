"""The loop over steps.

Its order is fixed: evaluate, save, take the batch, step, report. The data iterator moves only after
a save, so a checkpoint's state and data position belong together; step n is reported once step
n + 1 has been handed to the device, or before an evaluation or a save.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
import tqdm

from malora_jax.training import step
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.validation import LOSS, Validation, evaluations_without_progress


class Trainer:
    """Trains, reports, evaluates and saves.

    Attributes:
        setup: the run's parts.
        writer: where metrics go.
        checkpoints: where states go.
    """

    def __init__(self, setup: Setup, writer: MetricWriter, checkpoints: Checkpoints):
        self.setup = setup
        self.writer = writer
        self.checkpoints = checkpoints
        self._tasks = [split.task_name for split in setup.splits]
        self._validation = Validation(setup) if setup.run.training.evaluate_every else None
        past = writer.records[-1] if writer.records else {}
        self._train_time = past.get('train_time_s', 0.0)
        self._tokens = past.get('total_tokens', 0)
        self._drawn_G = np.array([past.get(f'examples/{task}', 0) for task in self._tasks])
        self._clock = time.perf_counter()

    def run_steps(self, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """Trains from the state's step to the last, or until patience is out, and saves that.

        Args:
            state: where to start, before the last step; its buffers are reused.
            data: training batches, as far as the state.

        Returns:
            The state after the last step.

        Raises:
            FloatingPointError: a loss or its gradient is not finite, with the step's number.
        """
        if self._is_out_of_patience():
            return state
        # Before `state.step` is asked for, which may wait for a state that is still being made.
        train_step = self._compile(state)
        steps, first = self.setup.steps, int(state.step)
        unreported = None
        with tqdm.tqdm(
            total=steps, initial=first, desc='train', unit='step', dynamic_ncols=True
        ) as bar:
            self._clock = time.perf_counter()
            for number in range(first + 1, steps + 1):
                batch = next(data)
                state, metrics = train_step(state, self.setup.base.params, batch)
                self._report(unreported, bar)
                unreported = (number, {**metrics, 'examples': self._examples(batch)})
                if self._evaluates_after(number) or self._saves_after(number):
                    self._report(unreported, bar, state)
                    unreported = None
                    self._save(state, data)
                    if self._is_out_of_patience():
                        bar.write(
                            f'The validation loss falls no more: stopped after step {number}.'
                        )
                        break
                    self._clock = time.perf_counter()
        return state

    def _compile(self, state: TrainState) -> Any:
        """Compiles the step ahead, so that no step's time has the compiler's in it."""
        run = self.setup.run
        train_step = step.make_train_step(
            self.setup.model,
            make_optimizer(run.optimizer, self.setup.steps),
            learning_rate_schedule(run.optimizer, self.setup.steps),
            len(self._tasks),
            run.seed,
            run.training.accumulate,
        )
        rows = run.data.batch_size * run.training.accumulate
        batch = step.abstract_batch(rows, run.data.sequence_length)
        return train_step.lower(state, self.setup.base.params, batch).compile()

    def _examples(self, batch: step.Batch) -> np.ndarray:
        """(G,): how many examples of each task begin in a batch."""
        begins = (batch['positions'] == 0) & (batch['segment_ids'] > 0)
        return np.bincount(batch['task_ids'][begins], minlength=len(self._tasks))

    def _evaluates_after(self, number: int) -> bool:
        every = self.setup.run.training.evaluate_every
        return self._validation is not None and (number % every == 0 or number == self.setup.steps)

    def _saves_after(self, number: int) -> bool:
        every = self.setup.run.training.checkpoint_every
        return number % every == 0 or number == self.setup.steps

    def _is_out_of_patience(self) -> bool:
        patience = self.setup.run.training.patience
        return 0 < patience <= evaluations_without_progress(self.writer.records)

    def _save(self, state: TrainState, data: grain.DatasetIterator) -> None:
        """Saves what was just reported, if it is due, the best so far, or the last."""
        record, best = self.writer.records[-1], self.checkpoints.best
        loss = record.get(LOSS)
        is_best = loss is not None and (best is None or loss <= best.loss)
        if is_best or self._saves_after(record['step']) or self._is_out_of_patience():
            self.checkpoints.save(state, data, loss)

    def _report(
        self,
        done: tuple[int, dict[str, jax.Array]] | None,
        bar: tqdm.tqdm,
        state: TrainState | None = None,
    ) -> None:
        """Waits for a step's metrics, checks them, writes them and shows them.

        Args:
            done: the step's number and metrics.
            bar: where they are shown.
            state: after that step, to be evaluated if that is due; None if there is a newer one.
        """
        if done is None:
            return
        number, arrays = done
        record = self._record(number, jax.device_get(arrays))
        if state is not None and self._validation and self._evaluates_after(number):
            record |= self._validation(state.variables(self.setup.base.params))
            bar.write(f'Step {number}: validation loss {record[LOSS]:.4f}.')
        check_finite(record)
        self.writer.write(record)
        self._show(record, bar)

    def _show(self, record: Mapping[str, float], bar: tqdm.tqdm) -> None:
        by_task = [
            f'{task} {record[f"loss/{task}"]:.2f}'
            for task in self._tasks
            if f'loss/{task}' in record
        ]
        speed = f'{record["tokens_per_second"]:.0f} tokens/s'
        text = ', '.join([f'loss {record["loss"]:.3f}', speed, *by_task])
        bar.n = record['step']
        bar.set_postfix_str(text)  # Redraws the bar.

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
    for name in ('loss', 'gradient_norm', LOSS):
        if not math.isfinite(record.get(name, 0.0)):
            raise FloatingPointError(
                f'The {name} is {record[name]} at step {record["step"]}; it was not saved. Lower '
                'optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
            )

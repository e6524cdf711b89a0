"""The loop over steps.

Its order is fixed: evaluate, save, take the batch, step, report. The data iterator moves only after
a save, so a checkpoint's state and data position belong together; step n is reported once step
n + 1 has been handed to the device, or before an evaluation or a save.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from malora_jax.data import RowStreams
from malora_jax.distributed import hosts, rules
from malora_jax.training import step
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.goodput import Goodput
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.preemption import Preempted, Preemption
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

    def __init__(
        self,
        setup: Setup,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        goodput: Goodput,
        preemption: Preemption,
    ):
        self.setup = setup
        self.writer = writer
        self.checkpoints = checkpoints
        self._goodput = goodput
        self._preemption = preemption
        self._tasks = [split.task_name for split in setup.splits]
        self._validation = Validation(setup) if setup.run.training.evaluate_every else None
        past = writer.records[-1] if writer.records else {}
        self._train_time = past.get('train_time_s', 0.0)
        self._tokens = past.get('total_tokens', 0)
        self._drawn_G = np.array([past.get(f'examples/{task}', 0) for task in self._tasks])
        self._clock = time.perf_counter()

    def run_steps(self, state: TrainState, data: RowStreams) -> TrainState:
        """Trains from the state's step to the last, or until patience is out, and saves that.

        Args:
            state: where to start, before the last step; its buffers are reused.
            data: training batches, as far as the state.

        Returns:
            The state after the last step.

        Raises:
            FloatingPointError: a loss or its gradient is not finite, with the step's number.
            Preempted: SIGTERM came; the step that was at work is done and saved.
        """
        if self._is_out_of_patience():
            return state
        setup = self.setup
        # Before `state.step` is asked for, which may wait for a state that is still being made.
        with self._goodput.phase('compile'):
            # Ahead, so that no step's time has the compiler's in it.
            train_step = step.lowered_step(
                setup.run, setup.model, setup.steps, len(self._tasks), state, setup.base.params
            ).compile()
        steps, first = setup.steps, int(state.step)
        unreported = None
        bar = tqdm.tqdm(
            total=steps,
            initial=first,
            desc='train',
            unit='step',
            dynamic_ncols=True,
            disable=not hosts.is_first(),
        )
        with self._preemption.deferred(), bar:
            self._clock = time.perf_counter()
            for number in range(first + 1, steps + 1):
                with self._goodput.phase('data wait'):
                    batch = next(data)
                self._goodput.step(number)
                state, metrics = train_step(state, setup.base.params, rules.place_rows(batch))
                self._report(unreported, bar)
                unreported = (number, metrics)
                stops = self._preemption.reached(number)
                if stops or self._evaluates_after(number) or self._saves_after(number):
                    self._report(unreported, bar, state)
                    unreported = None
                    self._save(state, data, stops)
                    if stops:
                        hosts.say(f'Stopped by SIGTERM after step {number}, which is saved.')
                        raise Preempted
                    if self._is_out_of_patience():
                        bar.write(
                            f'The validation loss falls no more: stopped after step {number}.'
                        )
                        break
                    self._clock = time.perf_counter()
        return state

    def _evaluates_after(self, number: int) -> bool:
        every = self.setup.run.training.evaluate_every
        return self._validation is not None and (number % every == 0 or number == self.setup.steps)

    def _saves_after(self, number: int) -> bool:
        every = self.setup.run.training.checkpoint_every
        return number % every == 0 or number == self.setup.steps

    def _is_out_of_patience(self) -> bool:
        patience = self.setup.run.training.patience
        return 0 < patience <= evaluations_without_progress(self.writer.records)

    def _save(self, state: TrainState, data: RowStreams, anyhow: bool) -> None:
        """Saves what was just reported, anyhow or if it is due, the best so far, or the last."""
        record, best = self.writer.records[-1], self.checkpoints.best
        loss = record.get(LOSS)
        is_best = loss is not None and (best is None or loss <= best.loss)
        is_end = anyhow or record['step'] == self.setup.steps or self._is_out_of_patience()
        if is_best or is_end or self._saves_after(record['step']):
            with self._goodput.phase('save'):
                self.writer.push()
                self.checkpoints.save(state, data, loss)
                if is_end:
                    self.checkpoints.wait()

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
            with self._goodput.phase('evaluate'):
                record |= self._validation(state.variables(self.setup.base.params))
            bar.write(f'Step {number}: validation loss {record[LOSS]:.4f}.')
        self._check_skipped(record)
        check_finite(record)
        # JSON has no word for what is not finite.
        self.writer.write({k: value for k, value in record.items() if math.isfinite(value)})
        self._show(record, bar)

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
    own = () if record.get('skipped') else ('loss', 'gradient_norm')
    for name in (*own, LOSS):
        if not math.isfinite(record.get(name, 0.0)):
            raise FloatingPointError(
                f'The {name} is {record[name]} at step {record["step"]}; it was not saved. Lower '
                'optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
            )

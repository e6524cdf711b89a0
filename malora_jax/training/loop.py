"""The training run: resume, score before, train, score after, write what was found.

The order within the loop is fixed: save, take the batch, step, report. The data iterator moves
only after a save, so a checkpoint's state and data position belong together; step n is reported
once step n + 1 has been handed to the device.
"""

import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import grain
import jax
import tqdm

from malora_jax import files
from malora_jax.data import describe_split, file_digests
from malora_jax.training import results, step
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
from malora_jax.training.heldout import held_out_losses
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import parameter_counts
from malora_jax.training.setup import Setup, build
from malora_jax.training.state import TrainState
from malora_jax.training.workdir import check_config, check_data, locked


def train(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a run to its end, from wherever its directory says that it stands.

    Args:
        config: as written in configs/.
        workdir: where everything goes.

    Returns:
        What is in `results.json`.

    Raises:
        UserError: a mistake in the config or its files.
        FloatingPointError: the loss or its gradient is not finite, with the step's number.
    """
    started = time.perf_counter()
    run = run_config(config)
    digests = file_digests(run.data.file_tasks)
    if (workdir / 'config.json').exists():
        check_config(workdir, config)
        check_data(workdir, digests)
        if (workdir / 'results.json').exists():
            print(f'{workdir} is finished; its results:')
            return files.read_json(workdir / 'results.json')
    # Everything that may be wrong with the config shows here, before anything is written.
    setup = build(run)
    state = setup.fresh_state()
    data = setup.train_iterator()
    parameters = parameter_counts(setup.model)
    print(
        f'{run.title}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    for split in setup.splits:
        if split.origin:
            print(describe_split(split))
    with locked(workdir):
        if digests:
            files.write_json(workdir / 'data.json', digests)
        files.write_json(workdir / 'config.json', config)
        return _train(setup, state, data, workdir, started)


def _train(
    setup: Setup,
    state: TrainState,
    data: grain.DatasetIterator,
    workdir: pathlib.Path,
    started: float,
) -> dict[str, Any]:
    with Checkpoints(workdir / 'checkpoints', setup.run.training.keep_checkpoints) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state, data)
            print(f'Continuing {workdir} after step {int(state.step)}.')
        before = results.scored(setup, workdir, 'before', None)
        with MetricWriter(workdir, int(state.step)) as writer:
            earlier = writer.records[-1]['train_time_s'] if writer.records else 0.0
            state = Trainer(setup, writer).run_steps(state, data, checkpoints)
    variables = state.variables(setup.base.params)
    after = results.scored(setup, workdir, 'after', variables)
    held_out = held_out_losses(setup.model, variables, setup.held_out_batches(), len(setup.splits))
    wall_time = earlier + time.perf_counter() - started
    return results.write_results(setup, workdir, writer.records, before, after, held_out, wall_time)


class Trainer:
    """The loop over steps.

    Attributes:
        setup: the run's parts.
        writer: where metrics go.
    """

    def __init__(self, setup: Setup, writer: MetricWriter):
        self.setup = setup
        self.writer = writer
        self._tasks = [split.task_name for split in setup.splits]
        past = writer.records[-1] if writer.records else {}
        self._train_time = past.get('train_time_s', 0.0)
        self._tokens = past.get('total_tokens', 0)
        self._clock = time.perf_counter()

    def run_steps(
        self, state: TrainState, data: grain.DatasetIterator, checkpoints: Checkpoints
    ) -> TrainState:
        """Trains from the state's step to the last, and saves that.

        Args:
            state: where to start; its buffers are reused.
            data: training batches, as far as the state.
            checkpoints: where to save.

        Returns:
            The state after the last step.

        Raises:
            FloatingPointError: the loss or its gradient is not finite, with the step's number.
        """
        training, first = self.setup.run.training, int(state.step)
        if first == training.steps:
            return state
        train_step = self._compile(state)
        unreported = None
        with tqdm.tqdm(
            total=training.steps, initial=first, desc='train', unit='step', dynamic_ncols=True
        ) as bar:
            self._clock = time.perf_counter()
            for number in range(first, training.steps):
                if number > first and number % training.checkpoint_every == 0:
                    self._report(unreported, bar)
                    unreported = None
                    checkpoints.save(state, data)
                    self._clock = time.perf_counter()
                batch = next(data)
                state, metrics = train_step(state, self.setup.base.params, batch)
                self._report(unreported, bar)
                unreported = (number + 1, metrics)
            self._report(unreported, bar)
        checkpoints.save(state, data)
        return state

    def _compile(self, state: TrainState) -> Any:
        """Compiles the step ahead, so that no step's time has the compiler's in it."""
        run = self.setup.run
        train_step = step.make_train_step(
            self.setup.model,
            make_optimizer(run.optimizer, run.training.steps),
            learning_rate_schedule(run.optimizer, run.training.steps),
            len(self._tasks),
            run.seed,
        )
        batch = step.abstract_batch(run.data.batch_size, run.data.sequence_length)
        return train_step.lower(state, self.setup.base.params, batch).compile()

    def _report(self, done: tuple[int, dict[str, jax.Array]] | None, bar: tqdm.tqdm) -> None:
        """Waits for a step's metrics, checks them, writes them and shows them."""
        if done is None:
            return
        number, arrays = done
        record = self._record(number, jax.device_get(arrays))
        for name in ('loss', 'gradient_norm'):
            if not math.isfinite(record[name]):
                raise FloatingPointError(
                    f'The {name} is {record[name]} at step {number}; it was not saved. Lower '
                    'optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
                )
        self.writer.write(record)
        by_task = [
            f'{task} {record[f"loss/{task}"]:.2f}'
            for task in self._tasks
            if f'loss/{task}' in record
        ]
        speed = f'{record["tokens_per_second"]:.0f} tokens/s'
        text = ', '.join([f'loss {record["loss"]:.3f}', speed, *by_task])
        bar.n = number
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
            'tokens_per_second': float(metrics['tokens']) / seconds,
            'total_tokens': self._tokens,
            'train_time_s': self._train_time,
        }

"""The training run: resume, score before, train, score after, write what was found.

The order within the loop is fixed: save, take the batch, step, report. The data iterator moves
only after a save, so a checkpoint's state and data position belong together; step n is reported
once step n + 1 has been handed to the device.
"""

import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import grain
import jax
import tqdm

from malora_jax.training import results, step
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
from malora_jax.training.heldout import held_out_losses
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import parameter_counts
from malora_jax.training.setup import Setup, build
from malora_jax.training.state import TrainState, create_state
from malora_jax.training.workdir import open_workdir


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
    run = run_config(config)
    open_workdir(workdir, config)
    if (workdir / 'results.json').exists():
        print(f'{workdir} is finished; its results:')
        return json.loads((workdir / 'results.json').read_text('utf-8'))
    setup = build(run)
    parameters = parameter_counts(setup.model)
    print(
        f'{run.method} on {run.model.name}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    state = create_state(setup.model, make_optimizer(run.optimizer, run.training.steps), run.seed)
    data = setup.train_iterator()
    with Checkpoints(workdir / 'checkpoints', run.training.keep_checkpoints) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state, data)
            print(f'Continuing {workdir} after step {int(state.step)}.')
        before = results.scored(setup, workdir, 'before', None)
        with MetricWriter(workdir, int(state.step)) as writer:
            trainer = Trainer(setup, writer)
            state = trainer.run_steps(state, data, checkpoints)
    variables = state.variables(setup.base.params)
    after = results.scored(setup, workdir, 'after', variables)
    held_out = held_out_losses(setup.model, variables, setup.held_out_batches(), len(setup.splits))
    return results.write_results(setup, workdir, writer.records, before, after, held_out)


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
        self._wall_time = past.get('wall_time_s', 0.0)
        self._tokens = past.get('tokens', 0)
        self._clock = time.perf_counter()

    def run_steps(
        self, state: TrainState, data: grain.DatasetIterator, checkpoints: Checkpoints
    ) -> TrainState:
        """Trains from the state's step to the last."""
        training, first = self.setup.run.training, int(state.step)
        train_step = self._compile(state) if first < training.steps else None
        bar = tqdm.tqdm(
            total=training.steps, initial=first, desc='train', unit='step', dynamic_ncols=True
        )
        unreported = None
        with bar:
            self._clock = time.perf_counter()
            for number in range(first, training.steps):
                if number > first and number % training.checkpoint_every == 0:
                    self._report(unreported, bar)
                    unreported = None
                    checkpoints.save(state, data)
                batch = next(data)
                assert train_step is not None
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
        if done is None:
            return
        number, arrays = done
        metrics = jax.device_get(arrays)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._wall_time += seconds
        self._tokens += int(metrics['tokens'])
        record: dict[str, float] = {'step': number}
        nll_G, tokens_G = metrics.pop('task_nll'), metrics.pop('task_tokens')
        by_task = {
            f'loss/{task}': float(nll / tokens)
            for task, nll, tokens in zip(self._tasks, nll_G, tokens_G, strict=True)
            if tokens
        }
        record |= {name: float(value) for name, value in metrics.items()} | by_task
        record |= {
            'tokens_per_second': float(metrics['tokens']) / seconds,
            'tokens': self._tokens,
            'wall_time_s': self._wall_time,
        }
        for name in ('loss', 'gradient_norm'):
            if not math.isfinite(record[name]):
                raise FloatingPointError(
                    f'The {name} is {record[name]} at step {number}; it was not saved. Lower '
                    'optimizer.learning_rate or optimizer.clip_norm, in another --workdir.'
                )
        self.writer.write(record)
        losses = ' '.join(f'{key[5:]} {value:.2f}' for key, value in by_task.items())
        bar.set_postfix_str(
            f'loss {record["loss"]:.3f}, {record["tokens_per_second"]:.0f} tokens/s, {losses}'
        )
        bar.update(number - bar.n)

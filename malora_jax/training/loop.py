"""The training run: resume, train, score base and adapted model, write what was found."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import grain

from malora_jax import files
from malora_jax.data import describe_split
from malora_jax.training import results
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import run_config
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.plan import count_parameters
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build
from malora_jax.training.state import TrainState
from malora_jax.training.trainer import Trainer
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
    digests = data_digests(run)
    if (workdir / 'config.json').exists():
        check_config(workdir, config)
        check_data(workdir, digests)
        if (workdir / 'results.json').exists():
            print(f'{workdir} is finished; its results:')
            return files.read_json(workdir / 'results.json')
    # Everything that may be wrong with the config shows here, before anything is written.
    setup = build(run)
    data = setup.train_iterator()
    state = setup.fresh_state()
    parameters = count_parameters(state.variables(setup.base.params))
    print(
        f'{run.title}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    for split, size in zip(setup.splits, setup.sizes, strict=True):
        if split.origin:
            print(describe_split(split, size))
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
        # Not `state.step`, which is there only once the whole state is.
        done = checkpoints.latest_step or 0
        if done:
            state = checkpoints.restore(state, data)
            print(f'Continuing {workdir} after step {done}.')
        with MetricWriter(workdir, done) as writer:
            earlier = writer.records[-1]['train_time_s'] if writer.records else 0.0
            if done < setup.steps:
                checkpoints.check_room(state)
                state = Trainer(setup, writer, checkpoints).run_steps(state, data)
        best = checkpoints.best
        if best and best.step != int(state.step):
            state = checkpoints.restore_state(state, best.step)
    variables = state.variables(setup.base.params)
    # Not before training, which would keep the user waiting: the base is still the same.
    before = results.scored(setup, workdir, 'before', None)
    after = results.scored(setup, workdir, 'after', variables)
    found = results.Found(
        records=writer.records,
        best=best,
        before=before,
        after=after,
        routing=setup.held_out_routing(variables),
    )
    wall_time = earlier + time.perf_counter() - started
    return results.write_results(setup, workdir, found, wall_time)

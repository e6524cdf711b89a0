"""The training run: resume, train, score base and adapted model, write what was found."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from malora_jax import buckets, errors
from malora_jax.data import RowStreams, describe_split
from malora_jax.distributed import hosts
from malora_jax.distributed.mesh import on_all_devices
from malora_jax.training import goodput, results
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.goodput import Goodput
from malora_jax.training.identity import Identity
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.plan import count_parameters
from malora_jax.training.preemption import Preemption, watched
from malora_jax.training.prepare import data_digests
from malora_jax.training.run_files import read_results
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.setup import Setup, build
from malora_jax.training.start import started_from
from malora_jax.training.state import TrainState
from malora_jax.training.trainer import train_steps
from malora_jax.training.workdir import RunDirectory, check_base, opened


def train(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    write_plots: results.PlotWriter | None = None,
) -> dict[str, Any]:
    """Train a run to its end; resume it if its directory holds checkpoints.

    Args:
        config: Nested config as written in configs/.
        workdir: Directory of the run.
        write_plots: Writer of the plots, such as `analysis.run_plots.write_run_plots`; None to
            write none.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: a mistake in the config or its files.
        FloatingPointError: the loss or its gradient is not finite, with the step's number.
        Preempted: SIGTERM came; what there was is saved.
    """
    started = time.perf_counter()
    run = run_config(config)
    with opened(workdir, config, data_digests(run)) as directory:
        if directory.is_finished:
            hosts.say(f'{buckets.home(workdir)} is finished; its results:')
            return read_results(workdir)
        record = Goodput()
        with record.phase('start'):
            devices = on_all_devices(run.mesh, run.data.batch_size)
        with devices, watched() as preemption:
            return _train(run, directory, _Watch(started, record, preemption, write_plots))


class _Watch(NamedTuple):
    """Run-wide services: start time, goodput recorder, preemption watcher and writer of plots."""

    started: float
    goodput: Goodput
    preemption: Preemption
    write_plots: results.PlotWriter | None


def _train(run: RunConfig, directory: RunDirectory, watch: _Watch) -> dict[str, Any]:
    # Everything that may be wrong with the config shows here, before anything is written.
    with watch.goodput.phase('load'):
        setup = build(run)
        identity = identified(setup, directory)
        data = setup.train_iterator()
        state = started(setup, setup.fresh_state(), directory)
    # Not `parameter_counts`, which would trace the model once more before the first step.
    parameters = count_parameters(run.model, state.adapter, state.adapter_frozen)
    hosts.say(
        f'{run.title}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    for split, size in zip(setup.splits, setup.sizes, strict=True):
        if split.origin:
            hosts.say(describe_split(split, size))
    hosts.say(setup.describe_drawing())
    if not hosts.is_first():
        hosts.meet('begun')
        return _run(setup, state, data, directory.path, identity, watch)
    directory.begin(run, identity)
    watch.goodput.open(directory.path)
    buckets.push()
    hosts.meet('begun')
    try:
        return _run(setup, state, data, directory.path, identity, watch)
    finally:
        watch.goodput.close()
        buckets.push()
        print(goodput.describe(goodput.accounts(goodput.read(directory.path))))


def identified(setup: Setup, directory: RunDirectory) -> Identity:
    """Return the identity of a run, and check what only shows once its base and data are loaded.

    Raises:
        UserError: The base is another one, or the config asks for fewer steps than are saved.
    """
    if directory.step > setup.steps:
        raise errors.UserError(
            f'{directory.path} has made {directory.step} steps, and the config asks for '
            f'{setup.steps}: set training.steps to at least {directory.step}, or choose another '
            '--workdir.'
        )
    return directory.identity(check_base(directory.path, setup.run, setup.base.params))


def started(setup: Setup, state: TrainState, directory: RunDirectory) -> TrainState:
    """A fresh state, from another adapter if `training.start_from` names one and nothing is saved.

    Raises:
        UserError: as `started_from`.
    """
    start_from = setup.run.training.start_from
    if not start_from or directory.step:
        return state
    return started_from(buckets.local(start_from), state, setup.model, setup.base)


def _run(
    setup: Setup,
    state: TrainState,
    data: RowStreams,
    workdir: pathlib.Path,
    identity: Identity,
    watch: _Watch,
) -> dict[str, Any]:
    with opened_progress(setup, state, data, workdir, identity, watch.goodput) as opened_run:
        progress, state = opened_run
        if not progress.is_at_end:
            state = train_steps(progress, state, watch.preemption)
        return finish(progress, state, watch.started, watch.write_plots)


@contextlib.contextmanager
def opened_progress(
    setup: Setup,
    state: TrainState,
    data: RowStreams,
    workdir: pathlib.Path,
    identity: Identity,
    record: Goodput,
) -> Iterator[tuple[RunProgress, TrainState]]:
    """Open a run's checkpoints and metrics, and restore its newest checkpoint if there is one.

    Args:
        setup: The run's parts.
        state: The state before the first step.
        data: Training batches from the first one on; moved on to the checkpoint's position.
        workdir: The run's directory.
        identity: The run's identity, for its checkpoints.
        record: Recorder of where the time goes.

    Yields:
        The progress of the run, and the state to continue from.

    Raises:
        UserError: The checkpoints are of another run, a file is broken, or there is no room for
            another checkpoint.
    """
    saved, keep = buckets.home(workdir / 'checkpoints'), setup.run.training.keep_checkpoints
    with Checkpoints(saved, keep, identity) as checkpoints:
        # Not `state.step` of a fresh state, which is there only once the whole state is.
        done = 0
        if checkpoints.latest_step:
            with record.phase('load'):
                state = checkpoints.restore(state, data)
                done = int(state.step)
            hosts.say(f'Continuing {buckets.home(workdir)} after step {done}.')
        with MetricWriter(workdir, done) as writer:
            progress = RunProgress(setup, workdir, data, writer, checkpoints, record, done)
            if not progress.is_at_end:
                checkpoints.check_room(state)
            # This frame must not hold the state, whose memory would not be freed until the end.
            states = [state]
            del state
            yield progress, states.pop()


def finish(
    progress: RunProgress,
    state: TrainState,
    started: float,
    write_plots: results.PlotWriter | None,
) -> dict[str, Any]:
    """Score base and adapted model, and write the results of a run.

    Args:
        progress: Progress of the run, at its end.
        state: The state after the last step. If there is a best checkpoint by validation loss,
            that one is scored instead.
        started: When this start of the run began, by `time.perf_counter`.
        write_plots: Writer of the plots; None to write none.

    Returns:
        The content of `results.json`.
    """
    setup, workdir, checkpoints = progress.setup, progress.workdir, progress.checkpoints
    variables = checkpoints.best_state(state).variables(setup.base.params)
    with progress.goodput.phase('evaluate'):
        # Not before training, which would keep the user waiting: the base is still the same.
        found = results.Found(
            records=progress.writer.records,
            best=checkpoints.best,
            before=results.scored(setup, workdir, 'before', None),
            after=results.scored(setup, workdir, 'after', variables),
            routing=setup.held_out_routing(variables),
        )
    # As if the run had never been interrupted.
    seconds = time.perf_counter() - started + progress.earlier_train_time
    return results.write_results(setup, workdir, found, seconds, write_plots)

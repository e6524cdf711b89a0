"""The training run: resume, train, score the base and the adapted model, write the results."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from malora_jax import buckets, errors
from malora_jax.data import RowStreams, describe_split
from malora_jax.distributed import hosts
from malora_jax.distributed.mesh import use_mesh
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
    """Fine-tune an adapter to the end of the run; resume the run if its directory has checkpoints.

    Example:
        config = configs.quickstart.get_config('malora').to_dict()
        results = train(config, pathlib.Path('runs/quickstart'))

    Args:
        config: Nested config as written in configs/.
        workdir: Directory of the run; it is created if it does not exist.
        write_plots: Function that writes the plots, such as
            `analysis.run_plots.write_run_plots`; None to write no plots.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: The config or one of its files is invalid, or the directory holds another run.
        FloatingPointError: The loss or its gradient is not finite; the message names the step.
        OSError: A checkpoint does not fit on the disk or cannot be written.
        Preempted: SIGTERM stopped the run; its progress is saved.
    """
    started = time.perf_counter()
    run = run_config(config)
    with opened(workdir, config, data_digests(run)) as directory:
        if directory.is_finished:
            hosts.print_on_first(f'{buckets.home(workdir)} is finished; its results:')
            return read_results(workdir)
        record = Goodput()
        with record.phase('start'):
            devices = use_mesh(run.mesh, run.data.batch_size)
        with devices, watched() as preemption:
            return _train(run, directory, _Watch(started, record, preemption, write_plots))


class _Watch(NamedTuple):
    """Services of one start of a run.

    Attributes:
        started: Time of the start, from `time.perf_counter`.
        goodput: Recorder of wall-clock time by phase.
        preemption: Watcher for SIGTERM.
        write_plots: Function that writes the plots; None to write no plots.
    """

    started: float
    goodput: Goodput
    preemption: Preemption
    write_plots: results.PlotWriter | None


def _train(run: RunConfig, directory: RunDirectory, watch: _Watch) -> dict[str, Any]:
    # Errors in the config must be raised here, before anything is written to the directory.
    with watch.goodput.phase('load'):
        setup = build(run)
        identity = identified(setup, directory)
        data = setup.train_iterator()
        state = started(setup, setup.fresh_state(), directory)
    # `parameter_counts` would trace the model once more, which delays the first step.
    parameters = count_parameters(run.model, state.adapter, state.adapter_frozen)
    hosts.print_on_first(
        f'{run.title}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    for split, size in zip(setup.splits, setup.sizes, strict=True):
        if split.origin:
            hosts.print_on_first(describe_split(split, size))
    hosts.print_on_first(setup.describe_drawing())
    if not hosts.is_first_process():
        hosts.barrier('begun')
        return _run(setup, state, data, directory.path, identity, watch)
    directory.begin(run, identity)
    watch.goodput.open(directory.path)
    buckets.push()
    hosts.barrier('begun')
    try:
        return _run(setup, state, data, directory.path, identity, watch)
    finally:
        watch.goodput.close()
        buckets.push()
        print(goodput.describe(goodput.accounts(goodput.read(directory.path))))


def identified(setup: Setup, directory: RunDirectory) -> Identity:
    """Return the identity of a run, after the checks that need the loaded base model and data.

    Args:
        setup: Parts of the run.
        directory: Directory of the run.

    Raises:
        UserError: The run was started with another base model, or the config has fewer steps than
            the newest checkpoint.
    """
    if directory.step > setup.steps:
        raise errors.UserError(
            f'{directory.path} has made {directory.step} steps, and the config asks for '
            f'{setup.steps}: set training.steps to at least {directory.step}, or choose another '
            '--workdir.'
        )
    return directory.identity(check_base(directory.path, setup.run, setup.base.params))


def started(setup: Setup, state: TrainState, directory: RunDirectory) -> TrainState:
    """Return the state before the first step, with trained values if `training.start_from` is set.

    Args:
        setup: Parts of the run.
        state: Freshly initialized state. It is returned unchanged if `training.start_from` is empty
            or if the run has a checkpoint, whose state is restored later.
        directory: Directory of the run.

    Raises:
        UserError: `training.start_from` has no adapter that fits this run and its base model.
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
        setup: Parts of the run.
        state: State before the first step.
        data: Iterator over training batches, before the first batch. If a checkpoint is restored,
            the iterator is moved to the position that was saved with it.
        workdir: Directory of the run.
        identity: Identity of the run, which is saved with its checkpoints.
        record: Recorder of wall-clock time by phase.

    Yields:
        The progress of the run, and the state from which training continues.

    Raises:
        UserError: The checkpoints belong to another run, or a file is broken.
        OSError: There is no disk space for another checkpoint.
    """
    saved, keep = buckets.home(workdir / 'checkpoints'), setup.run.training.keep_checkpoints
    with Checkpoints(saved, keep, identity) as checkpoints:
        # Reading `state.step` of a fresh state would wait until the whole state is computed.
        done = 0
        if checkpoints.latest_step:
            with record.phase('load'):
                state = checkpoints.restore(state, data)
                done = int(state.step)
            hosts.print_on_first(f'Continuing {buckets.home(workdir)} after step {done}.')
        with MetricWriter(workdir, done) as writer:
            progress = RunProgress(setup, workdir, data, writer, checkpoints, record, done)
            if not progress.is_at_end:
                checkpoints.check_room(state)
            # If this frame kept a reference, the state's memory would not be freed before the end.
            states = [state]
            del state
            yield progress, states.pop()


def finish(
    progress: RunProgress,
    state: TrainState,
    started: float,
    write_plots: results.PlotWriter | None,
) -> dict[str, Any]:
    """Score the base and the adapted model, and write the results of a run.

    Args:
        progress: Progress of the run, at its end.
        state: State after the last step. If checkpoints have a validation loss, the one with the
            lowest loss is scored instead.
        started: Time of this start of the run, from `time.perf_counter`.
        write_plots: Function that writes the plots; None to write no plots.

    Returns:
        The content of `results.json`.
    """
    setup, workdir, checkpoints = progress.setup, progress.workdir, progress.checkpoints
    variables = checkpoints.best_state(state).variables(setup.base.params)
    with progress.goodput.phase('evaluate'):
        # The base model is frozen, so it can be scored after training. Scoring it first would
        # delay training.
        found = results.Found(
            records=progress.writer.records,
            best=checkpoints.best,
            before=results.scored(setup, workdir, 'before', None),
            after=results.scored(setup, workdir, 'after', variables),
            routing=setup.held_out_routing(variables),
        )
    # An interrupted run also counts the training time of its earlier starts.
    seconds = time.perf_counter() - started + progress.earlier_train_time
    return results.write_results(setup, workdir, found, seconds, write_plots)

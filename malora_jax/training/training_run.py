"""The training run: resume, train, score the base and the adapted model, write the results."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from malora_jax import cloud_storage, errors
from malora_jax.adapters.goat import GOAT
from malora_jax.data import RowStreams, describe_split, describe_truncation
from malora_jax.distributed import hosts
from malora_jax.distributed.mesh import use_mesh
from malora_jax.models import Decoder
from malora_jax.training import goodput, results
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.goodput import GoodputRecorder
from malora_jax.training.identity import RunIdentity
from malora_jax.training.lora_experts import start_experts
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.plan import count_parameters
from malora_jax.training.preemption import PreemptionWatcher, watch_preemption
from malora_jax.training.prepare import data_digests
from malora_jax.training.run_files import read_results
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.setup import Setup, build_setup
from malora_jax.training.state import TrainState
from malora_jax.training.svd_start import svd_start
from malora_jax.training.task_routers import start_task_routers
from malora_jax.training.train_loop import train_steps
from malora_jax.training.warm_start import warm_start
from malora_jax.training.workdir import RunDirectory, check_base, open_run_directory


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
    start_time = time.perf_counter()
    run = run_config(config)
    with open_run_directory(workdir, config, data_digests(run)) as directory:
        if directory.is_finished:
            hosts.print_on_first(f'{cloud_storage.remote_path(workdir)} is finished; its results:')
            return read_results(workdir)
        recorder = GoodputRecorder()
        with recorder.phase('start'):
            devices = use_mesh(run.mesh, run.data.batch_size)
        with devices, watch_preemption() as preemption:
            return _train(
                run, directory, _RunServices(start_time, recorder, preemption, write_plots)
            )


class _RunServices(NamedTuple):
    """Objects that a process creates when it starts or resumes a run, and uses until the run ends.

    Attributes:
        start_time: Time when the process started, from `time.perf_counter`.
        goodput: Recorder of wall-clock time by phase.
        preemption: Watcher for SIGTERM.
        write_plots: Function that writes the plots; None to write no plots.
    """

    start_time: float
    goodput: GoodputRecorder
    preemption: PreemptionWatcher
    write_plots: results.PlotWriter | None


def _train(run: RunConfig, directory: RunDirectory, services: _RunServices) -> dict[str, Any]:
    # Errors in the config must be raised here, before anything is written to the directory.
    with services.goodput.phase('load'):
        setup = build_setup(run)
        identity = check_identity(setup, directory)
        data = setup.train_iterator()
        state = set_start(setup, setup.fresh_state(), directory)
    # `count_model_parameters` would trace the model once more, which delays the first step.
    parameters = count_parameters(
        Decoder(run.model, run.adapter), state.adapter, state.adapter_frozen
    )
    hosts.print_on_first(
        f'{run.title}: {parameters["trainable"]:,} trained parameters '
        f'({parameters["percent_of_base"]:.1f}% of the base), {len(setup.splits)} tasks.'
    )
    hosts.print_on_first(str(run.choose_attention(jax.devices()[0])))
    for split, size in zip(setup.splits, setup.sizes, strict=True):
        if split.origin:
            hosts.print_on_first(describe_split(split, size))
            warning = describe_truncation(split, size, run.data.sequence_length)
            if warning:
                hosts.print_on_first(warning)
    hosts.print_on_first(setup.describe_draws())
    if not hosts.is_first_process():
        hosts.barrier('begun')
        return _run(setup, state, data, directory.path, identity, services)
    directory.write_identity(run, identity)
    services.goodput.open(directory.path)
    cloud_storage.upload_changes()
    hosts.barrier('begun')
    try:
        return _run(setup, state, data, directory.path, identity, services)
    finally:
        services.goodput.close()
        cloud_storage.upload_changes()
        print(goodput.describe(goodput.seconds_by_activity(goodput.read(directory.path))))


def check_identity(setup: Setup, directory: RunDirectory) -> RunIdentity:
    """Return the identity of a run, after the checks that need the loaded base model and data.

    Args:
        setup: Config, models and data of the run.
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


def set_start(setup: Setup, state: TrainState, directory: RunDirectory) -> TrainState:
    """Return the state before the first step, with values from a trained adapter or the kernels.

    Args:
        setup: Config, models and data of the run.
        state: Freshly initialized state. It is returned unchanged if the run has a checkpoint,
            whose state is restored later; or if `training.start_from` is empty and `adapter.start`
            is 'random'.
        directory: Directory of the run.

    Raises:
        UserError: `training.start_from` has no adapter that fits this run and its base model.
    """
    training = setup.run.training
    if directory.step:
        return state
    if training.start_from:
        trained = [cloud_storage.localize(address) for address in training.start_directories]
        if len(trained) == 1:
            return warm_start(trained[0], state, setup.model, setup.base)
        state = start_experts(trained, state, setup.model, setup.base, training.router_start)
        return start_task_routers(state, setup) if training.router_start == 'tasks' else state
    if isinstance(setup.run.adapter.structure, GOAT):
        return svd_start(state, setup.model, setup.base.params)
    return state


def _run(
    setup: Setup,
    state: TrainState,
    data: RowStreams,
    workdir: pathlib.Path,
    identity: RunIdentity,
    services: _RunServices,
) -> dict[str, Any]:
    with open_progress(setup, state, data, workdir, identity, services.goodput) as opened_run:
        progress, state = opened_run
        if not progress.is_at_end:
            state = train_steps(progress, state, services.preemption)
        return finish(progress, state, services.start_time, services.write_plots)


@contextlib.contextmanager
def open_progress(
    setup: Setup,
    state: TrainState,
    data: RowStreams,
    workdir: pathlib.Path,
    identity: RunIdentity,
    recorder: GoodputRecorder,
) -> Iterator[tuple[RunProgress, TrainState]]:
    """Open a run's checkpoints and metrics, and restore its newest checkpoint if there is one.

    Args:
        setup: Config, models and data of the run.
        state: State before the first step.
        data: Iterator over training batches, before the first batch. If a checkpoint is restored,
            the iterator is moved to the position that was saved with it.
        workdir: Directory of the run.
        identity: Identity of the run, which is saved with its checkpoints.
        recorder: Recorder of wall-clock time by phase.

    Yields:
        The progress of the run, and the state from which training continues.

    Raises:
        UserError: The checkpoints belong to another run, or a file is broken.
        OSError: There is no disk space for another checkpoint.
    """
    checkpoint_dir, keep = (
        cloud_storage.remote_path(workdir / 'checkpoints'),
        setup.run.training.keep_checkpoints,
    )
    with Checkpoints(checkpoint_dir, keep, identity) as checkpoints:
        # Reading `state.step` of a fresh state would wait until the whole state is computed.
        step = 0
        if checkpoints.latest_step:
            with recorder.phase('load'):
                state = checkpoints.restore(state, data)
                step = int(state.step)
            hosts.print_on_first(
                f'Continuing {cloud_storage.remote_path(workdir)} after step {step}.'
            )
        with MetricWriter(workdir, step) as writer:
            progress = RunProgress(setup, workdir, data, writer, checkpoints, recorder, step)
            if not progress.is_at_end:
                checkpoints.check_disk_space(state)
            # If this frame kept a reference, the state's memory would not be freed before the end.
            states = [state]
            del state
            yield progress, states.pop()


def finish(
    progress: RunProgress,
    state: TrainState,
    start_time: float,
    write_plots: results.PlotWriter | None,
) -> dict[str, Any]:
    """Score the base and the adapted model, and write the results of a run.

    Args:
        progress: Progress of the run, at its end.
        state: State after the last step. If checkpoints have a validation loss, the one with the
            lowest loss is scored instead.
        start_time: Time of this start of the run, from `time.perf_counter`.
        write_plots: Function that writes the plots; None to write no plots.

    Returns:
        The content of `results.json`.
    """
    setup, workdir, checkpoints = progress.setup, progress.workdir, progress.checkpoints
    variables = checkpoints.best_state(state).variables(setup.base.params)
    with progress.goodput.phase('evaluate'):
        # The base model is frozen, so it can be scored after training. Scoring it first would
        # delay training.
        measurements = results.RunMeasurements(
            records=progress.writer.records,
            best=checkpoints.best,
            before=results.load_or_score_answers(setup, workdir, 'before', None),
            after=results.load_or_score_answers(setup, workdir, 'after', variables),
            routing=setup.held_out_routing(variables),
        )
    # An interrupted run also counts the training time of its earlier starts.
    seconds = time.perf_counter() - start_time + progress.earlier_train_time
    return results.write_results(setup, workdir, measurements, seconds, write_plots)

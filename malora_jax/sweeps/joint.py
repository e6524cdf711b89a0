"""Joint training: several runs of a sweep in one process, as many at once as fit into memory."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.sweeps.base_answers import copy_base_answers
from malora_jax.sweeps.directory import is_finished
from malora_jax.sweeps.joint_comparison import measure_joint_step
from malora_jax.sweeps.joint_groups import with_largest_ranks
from malora_jax.sweeps.joint_loop import JointLoop, JointRun
from malora_jax.training import training_run
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.goodput import GoodputRecorder
from malora_jax.training.memory_estimate import available_memory, max_joint_runs
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.preemption import watch_preemption
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build_setup
from malora_jax.training.state import TrainState, create_state
from malora_jax.training.workdir import RunDirectory, open_run_directory

Configs = Mapping[str, Mapping[str, Any]]
# Models are compared by value, and optimizers are cached by their settings, so each distinct model
# compiles once.
create_state_jit = jax.jit(create_state, static_argnums=(0, 1))


def train_together(configs: Configs, workdir: pathlib.Path, measure: bool = True) -> dict[str, str]:
    """Train the runs of one joint group until they finish.

    Each run has its own directory, as `training.train` writes it, and its own data. The runs are
    trained one after another if fewer than two fit into memory, there are several devices, or joint
    training is not faster.

    Args:
        configs: Configs as written in configs/, by run name, of one group of `joint_groups`.
        workdir: Directory of the sweep; each run is a directory in it.
        measure: Whether to first measure if joint training is faster, and to print the result.

    Returns:
        Error messages of the failed runs, by name.

    Raises:
        UserError: The configs or the files that they name are invalid.
        Preempted: SIGTERM arrived; the runs are saved.
    """
    todo = {name: config for name, config in configs.items() if not is_finished(workdir, name)}
    if not todo:
        return {}
    run = with_largest_ranks([run_config(config) for config in todo.values()])
    max_joint = 1 if len(jax.devices()) > 1 else max_joint_runs(run, available_memory())
    digests, errors = data_digests(run), dict[str, str]()
    parts = np.array_split(list(todo), -(-len(todo) // max(1, max_joint)))
    for chunk in (part.tolist() for part in parts):
        setups = _setups({name: todo[name] for name in chunk}) if len(chunk) > 1 else {}
        # Runs whose length is set in epochs may differ slightly in their number of steps if their
        # seeds differ. Only runs with the same number of steps can train jointly.
        steps = {name: setups[name].steps if setups else 0 for name in chunk}
        for number in dict.fromkeys(steps.values()):
            group, run_errors = {name: todo[name] for name in steps if steps[name] == number}, None
            if len(group) > 1:
                run_errors = _train(
                    group, [setups[name] for name in group], run, digests, workdir, measure
                )
            errors |= (
                _train_sequentially(group, digests, workdir) if run_errors is None else run_errors
            )
    return errors


def initial_state(run: RunConfig, setup: Setup) -> TrainState:
    """Create the training state of a run before its first step.

    The function is compiled once for each combination of rank, shared rank and beta in a group.

    Args:
        run: Config with the settings that all runs of the joint group share. All calls must pass
            the same one, because another optimizer setting would compile the function again.
        setup: Setup of the run whose state is created.
    """
    own = setup.run.adapter
    adapter = dataclasses.replace(
        run.adapter, structure=own.structure, initialization=own.initialization
    )
    model = setup.model.clone(adapter=adapter)
    optimizer = make_optimizer(run.optimizer, 1)
    return create_state_jit(model, optimizer, setup.hyperparameters.seed, setup.base.params)


def _train_sequentially(
    configs: Configs, digests: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, str]:
    errors = {}
    for name, config in configs.items():
        copy_base_answers(workdir, name, config, digests)
        try:
            training_run.train(config, workdir / name, write_run_plots)
        except FloatingPointError as error:
            errors[name] = str(error)
    return errors


def _setups(configs: Configs) -> dict[str, Setup]:
    """Build the `Setup` of each run, by run name; all runs share one copy of the base model."""
    setups: dict[str, Setup] = {}
    base = None
    for name, config in configs.items():
        setups[name] = build_setup(run_config(config), base)
        base = setups[name].base
    return setups


def _train(
    configs: Configs,
    setups: Sequence[Setup],
    group: RunConfig,
    digests: Mapping[str, Any],
    workdir: pathlib.Path,
    measure: bool,
) -> dict[str, str] | None:
    """Train runs jointly, unless a measurement shows that joint training is not faster.

    Returns:
        Error messages of the failed runs, by name. None if the runs have not been trained, because
        joint training is not faster.
    """
    started, step = time.perf_counter(), None
    print(group.choose_attention(jax.devices()[0]))
    with contextlib.ExitStack() as stack:
        directories = [
            stack.enter_context(open_run_directory(workdir / name, config, digests))
            for name, config in configs.items()
        ]
        if measure:
            comparison, step = measure_joint_step(
                setups, [initial_state(group, setup) for setup in setups]
            )
            print(comparison, flush=True)
            if not comparison.is_faster:
                print(
                    'Joint training is not faster, so the runs are trained one after another.',
                    flush=True,
                )
                return None
        preemption = stack.enter_context(watch_preemption())
        runs = [
            _open_run(stack, setup, initial_state(group, setup), directory)
            for setup, directory in zip(setups, directories, strict=True)
        ]
        JointLoop(runs, preemption, step).train()
        for name, each in zip(configs, runs, strict=True):
            if each.state is not None:
                copy_base_answers(workdir, name, configs[name], digests)
                training_run.finish(each.progress, each.state, started, write_run_plots)
    return {name: each.error for name, each in zip(configs, runs, strict=True) if each.error}


def _open_run(
    stack: contextlib.ExitStack, setup: Setup, state: TrainState, directory: RunDirectory
) -> JointRun:
    """Open a run's files until `stack` is closed, and restore its newest checkpoint."""
    goodput, data = GoodputRecorder(), setup.train_iterator()
    identity = training_run.check_identity(setup, directory)
    state = training_run.set_start(setup, state, directory)
    directory.write_identity(setup.run, identity)
    print(f'{directory.path.name}: {setup.describe_draws()}')
    goodput.open(directory.path)
    stack.callback(goodput.close)
    opened_progress = training_run.open_progress(
        setup, state, data, directory.path, identity, goodput
    )
    return JointRun(*stack.enter_context(opened_progress))

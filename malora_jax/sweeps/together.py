"""Trains runs that are alike in one process, as many at once as fit into memory."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from malora_jax.sweeps.against import compare
from malora_jax.sweeps.base_answers import take_base_answers
from malora_jax.sweeps.directory import is_finished
from malora_jax.sweeps.group import Group
from malora_jax.sweeps.memory import available, that_fit
from malora_jax.sweeps.replica import open_replica
from malora_jax.sweeps.step import make_starts, take
from malora_jax.sweeps.traced import common, differing
from malora_jax.training import loop
from malora_jax.training.config import run_config
from malora_jax.training.preemption import watched
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build
from malora_jax.training.state import TrainState
from malora_jax.training.workdir import RunDirectory, opened

Configs = Mapping[str, Mapping[str, Any]]


def train_together(configs: Configs, workdir: pathlib.Path, measure: bool = True) -> dict[str, str]:
    """Trains runs that `alike` has put together to their ends.

    Each has its own directory, as `training.train` makes it, and its own data. Where fewer than two
    fit into memory, there are several devices, or it does not pay, they are trained one after
    another.

    Args:
        configs: by name, as written in configs/.
        workdir: each run is a directory in it.
        measure: whether to measure first if it pays, and to print that.

    Returns:
        Why a run failed, by its name.

    Raises:
        UserError: a mistake in the configs or their files.
        Preempted: SIGTERM came; what there was is saved.
    """
    todo = {name: config for name, config in configs.items() if not is_finished(workdir, name)}
    if not todo:
        return {}
    run = common([run_config(config) for config in todo.values()])
    most = 1 if len(jax.devices()) > 1 else that_fit(run, available())
    digests = data_digests(run)
    errors: dict[str, str] = {}
    for chunk in _chunks(list(todo), most):
        some = {name: todo[name] for name in chunk}
        setups = _setups(some) if len(some) > 1 else {}
        for part in _of_equal_steps(setups) if setups else [chunk]:
            own = {name: todo[name] for name in part}
            found = None
            if len(own) > 1:
                parts = [setups[name] for name in part]
                with _all_opened(own, digests, workdir) as directories:
                    found = _train(own, parts, directories, digests, measure)
            errors |= _alone(own, digests, workdir) if found is None else found
    return errors


def _chunks(names: list[str], most: int) -> list[list[str]]:
    """Parts of nearly the same size, none above `most`."""
    count = -(-len(names) // max(1, most))
    size = -(-len(names) // count)
    return [names[start : start + size] for start in range(0, len(names), size)]


def _alone(configs: Configs, digests: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, str]:
    errors = {}
    for name, config in configs.items():
        take_base_answers(workdir, name, config, digests)
        try:
            loop.train(config, workdir / name)
        except FloatingPointError as error:
            errors[name] = str(error)
    return errors


def _of_equal_steps(setups: Mapping[str, Setup]) -> list[list[str]]:
    """Return the names of runs in lists, each of runs with the same number of steps.

    Runs by epochs may differ by a step or two if their seeds differ.
    """
    found: dict[int, list[str]] = {}
    for name, setup in setups.items():
        found.setdefault(setup.steps, []).append(name)
    return list(found.values())


@contextlib.contextmanager
def _all_opened(
    configs: Configs, digests: Mapping[str, Any], workdir: pathlib.Path
) -> Iterator[list[RunDirectory]]:
    """Lock and check the directories of all runs."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(opened(workdir / name, config, digests))
            for name, config in configs.items()
        ]


def _train(
    configs: Configs,
    setups: Sequence[Setup],
    directories: Sequence[RunDirectory],
    digests: Mapping[str, Any],
    measure: bool,
) -> dict[str, str] | None:
    """Why runs failed; None if they were not trained, as that does not pay."""
    started = time.perf_counter()
    runs = [setup.run for setup in setups]
    values, run = differing(runs), common(runs)

    @functools.cache
    def starts(rank: int, shared_rank: int) -> Any:
        """Compiled once for runs of the same ranks."""
        sizes = (rank, shared_rank)
        some = next(run for run in runs if (run.adapter.rank, run.adapter.shared_rank) == sizes)
        return make_starts(some, setups[0].steps)

    def fresh(index: int) -> TrainState:
        adapter = runs[index].adapter
        start = starts(adapter.rank, adapter.shared_rank)
        return start(take(values, index), setups[index].base.params)

    whole = jax.eval_shape(
        make_starts(run, setups[0].steps), take(values, 0), setups[0].base.params
    )
    step = None
    if measure:
        widest = max(range(len(runs)), key=lambda index: runs[index].adapter.rank)
        comparison, step = compare(setups[widest], fresh(widest), run, whole, values)
        print(comparison, flush=True)
        if not comparison.pays:
            print('So they are trained one after another.', flush=True)
            return None
    replicas, states = [], []
    with watched() as preemption, contextlib.ExitStack() as stack:
        for index, (setup, directory) in enumerate(zip(setups, directories, strict=True)):
            replica, state = open_replica(stack, setup, fresh(index), directory, preemption)
            replicas.append(replica)
            states.append(state)
        group = Group(run, whole, replicas, states, values, preemption, step)
        del states, state  # Their memory: the group has its own, of all.
        group.train()
        del group
        for replica in replicas:
            if not replica.error:
                take_base_answers(
                    replica.workdir.parent, replica.name, configs[replica.name], digests
                )
                replica.finish(started)
    return {replica.name: replica.error for replica in replicas if replica.error}


def _setups(configs: Configs) -> dict[str, Setup]:
    """The parts of each run by its name, with one base."""
    setups: dict[str, Setup] = {}
    base = None
    for name, config in configs.items():
        setups[name] = build(run_config(config), base)
        base = setups[name].base
    return setups

"""Complete benchmark: build all systems from a config, compare them, then time them interleaved."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.peers import batches
from experiments.peers.measure import compare, time_interleaved
from experiments.peers.report import summarize_kind
from experiments.peers.systems import PAIRS, make_system
from malora_jax import errors
from malora_jax.adapters import method
from malora_jax.benchmark.machine import num_cores
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.setup import Setup, build_setup

# Functions that return an endless iterator of batches; each call returns the same batches.
BATCH_KINDS: dict[str, Callable[[Setup], Iterator[batches.PeerBatch]]] = {
    'synthetic': lambda setup: batches.synthetic_batches(
        setup.run.model.vocab_size, setup.run.seed
    ),
    'real': lambda setup: batches.real_batches(setup.train_iterator(), setup.base.tokenizer.eos_id),
}
_PACKAGES = ('jax', 'flax', 'torch', 'transformers', 'peft', 'moe-peft')


def benchmark(
    config: Mapping[str, Any],
    pairs: Sequence[str],
    kinds: Sequence[str],
    turns: int,
    steps: int,
) -> dict[str, Any]:
    """Compare and time pairs of systems.

    Args:
        config: Config as written in configs/. Its model, data, optimizer, adapted linear modules
            and dropout are used; ranks and experts are those of the named methods.
        pairs: Names of pairs in `PAIRS`.
        kinds: Names of kinds of batches in `BATCH_KINDS`.
        turns: Number of rounds, in each of which every system is timed once.
        steps: Number of timed steps per system and round.

    Returns:
        Settings and package versions, and two results. `differences` has a `SystemDifference`, as a
        dict, for each kind of batches and each pair whose systems implement the same method. `rows`
        has the result of `summarize_kind` for each kind of batches.

    Raises:
        UserError: The config is invalid, a package is missing, or systems that should compute the
            same do not.
    """
    # torch multiplies float32 exactly; JAX by default uses TensorFloat-32 on a GPU.
    jax.config.update('jax_default_matmul_precision', 'highest')
    run = run_config(config)
    _check_adapter(run)
    setup = build_setup(run)
    differences = _differences(setup, pairs, kinds)
    used = dict.fromkeys(name for pair in pairs for name in (PAIRS[pair].ours, PAIRS[pair].peer))
    systems = {name: make_system(name, setup, run.adapter.dropout) for name in used}
    return {
        'model': run.model.name,
        'dropout': run.adapter.dropout,
        'targets': run.adapter.targets,
        'device': jax.devices()[0].device_kind,
        'threads': num_cores(),
        'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
        'differences': differences,
        'rows': {
            kind: summarize_kind(
                kind, *time_interleaved(systems, BATCH_KINDS[kind](setup), turns, steps), pairs
            )
            for kind in kinds
        },
    }


def _check_adapter(run: RunConfig) -> None:
    overridable = {name: getattr(run.adapter, name) for name in ('targets', 'dropout')}
    if run.adapter != method(run.method, **overridable):
        raise errors.UserError(
            'Of config.adapter, only targets and dropout can be overridden here: ranks and experts '
            'are those of the named methods.'
        )


def _differences(
    setup: Setup, pairs: Sequence[str], kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the differences between the systems of each pair that implements the same method.

    The systems run without dropout, on one batch of each kind.

    Returns:
        The `SystemDifference` as a dict, by kind of batches, then by pair.
    """
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for name in pairs:
        pair = PAIRS[name]
        if pair.is_same_method:
            ours, peer = (make_system(side, setup, 0.0) for side in (pair.ours, pair.peer))
            for kind in kinds:
                difference = compare(ours, peer, next(BATCH_KINDS[kind](setup)))
                found[kind][name] = dataclasses.asdict(difference)
    return found

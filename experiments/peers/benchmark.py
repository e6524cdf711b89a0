"""The whole measurement: build everything from a config, compare, then time in turns."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.peers import rows
from experiments.peers.measure import compare, time_in_turns
from experiments.peers.report import summary
from experiments.peers.systems import PAIRS, make
from malora_jax import errors
from malora_jax.adapters import method
from malora_jax.benchmark.machine import cores
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.setup import Setup, build

# Endless examples, always the same ones.
KINDS: dict[str, Callable[[Setup], Iterator[rows.Rows]]] = {
    'synthetic': lambda setup: rows.synthetic(setup.run.model.vocab_size, setup.run.seed),
    'real': lambda setup: rows.real(setup.train_iterator(), setup.base.tokenizer.eos_id),
}
_PACKAGES = ('jax', 'flax', 'torch', 'transformers', 'peft', 'moe-peft')


def benchmark(
    config: Mapping[str, Any],
    pairs: Sequence[str],
    kinds: Sequence[str],
    turns: int,
    steps: int,
) -> dict[str, Any]:
    """Compares and times pairs of systems.

    Args:
        config: as written in configs/. Model, data, optimizer, the adapted linears and dropout are
            used; ranks and experts are those of the methods' names.
        pairs: names in `PAIRS`.
        kinds: of rows, names in `KINDS`.
        turns: how often each system gets its turn.
        steps: timed steps of a turn.

    Returns:
        Versions and settings; `differences` by rows and pair; `rows`, a `summary` of each kind.

    Raises:
        UserError: a mistake in the config, a package that is missing, or systems that should
            compute the same and do not.
    """
    run = run_config(config)
    _check_adapter(run)
    setup = build(run)
    differences = _differences(setup, pairs, kinds)
    used = dict.fromkeys(name for pair in pairs for name in (PAIRS[pair].ours, PAIRS[pair].peer))
    systems = {name: make(name, setup, run.adapter.dropout) for name in used}
    return {
        'model': run.model.name,
        'dropout': run.adapter.dropout,
        'targets': run.adapter.targets,
        'threads': cores(),
        'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
        'differences': differences,
        'rows': {
            kind: summary(kind, *time_in_turns(systems, KINDS[kind](setup), turns, steps), pairs)
            for kind in kinds
        },
    }


def _check_adapter(run: RunConfig) -> None:
    free = {name: getattr(run.adapter, name) for name in ('targets', 'dropout')}
    if run.adapter != method(run.method, **free):
        raise errors.UserError(
            'Of config.adapter, only targets and dropout can be overridden here: ranks and experts '
            'are those of the named methods.'
        )


def _differences(
    setup: Setup, pairs: Sequence[str], kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Compares the pairs that are the same method, without dropout, on the first examples."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for name in pairs:
        pair = PAIRS[name]
        if pair.same:
            ours, peer = (make(side, setup, 0.0) for side in (pair.ours, pair.peer))
            for kind in kinds:
                difference = compare(ours, peer, next(KINDS[kind](setup)))
                found[kind][name] = dataclasses.asdict(difference)
    return found

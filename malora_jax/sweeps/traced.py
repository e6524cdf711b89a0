"""Hyperparameters that runs which train together may differ in, as values of one compiled step.

Ranks are shapes; runs of smaller ones are padded (`sweeps.padding`), and their α is multiplied by
what the division by the largest rank takes away.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from malora_jax.adapters import AdapterConfig
from malora_jax.training.config import RunConfig

# By section of the config: what a step does not need to know to be compiled.
_FIELDS: dict[str, tuple[str, ...]] = {
    'optimizer': (
        *('learning_rate', 'weight_decay', 'clip_norm'),
        *('router_rate', 'down_rate', 'core_rate', 'up_rate', 'magnitude_rate'),
    ),
    'adapter': ('alpha', 'beta', 'dropout', 'balance_weight'),
}
NAMES = ('seed', *(f'{section}.{name}' for section, names in _FIELDS.items() for name in names))
_Section = TypeVar('_Section')


def alike(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Which runs can train together, in the order in which they are given.

    Args:
        configs: by name, as written in configs/.

    Returns:
        The names, put together where nothing but `NAMES` and ranks differs.
    """
    found: dict[str, list[str]] = {}
    for name, config in configs.items():
        fields = flatten_dict(dict(config), sep='.')
        rest = {field: value for field, value in fields.items() if field not in NAMES}
        # But with a subspace or without one.
        rest['adapter.shared_rank'] = rest['adapter.shared_rank'] > 0
        del rest['adapter.rank']
        found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(name)
    return list(found.values())


def common(runs: Sequence[RunConfig]) -> RunConfig:
    """The config of the first run, with the largest of all ranks and an α that goes with it."""
    adapter = runs[0].adapter
    sizes = {
        field: max(getattr(run.adapter, field) for run in runs) for field in ('rank', 'shared_rank')
    }
    if all(getattr(adapter, field) == size for field, size in sizes.items()):
        return runs[0]
    changes = sizes | {'alpha': _alpha(adapter, sizes['rank'])}
    return _unchecked(runs[0], {'adapter': _unchecked(adapter, changes)})


def differing(runs: Sequence[RunConfig]) -> dict[str, np.ndarray]:
    """What runs that are alike differ in, by dotted name: a value for each; always the seed.

    What they share stays a constant of the step, as in a run alone.
    """
    rank = max(run.adapter.rank for run in runs)
    values = {'seed': np.array([run.seed for run in runs], np.uint32)}
    for section, names in _FIELDS.items():
        for name in names:
            each = [
                _alpha(run.adapter, rank)
                if name == 'alpha'
                else getattr(getattr(run, section), name)
                for run in runs
            ]
            if len(set(each)) > 1:
                values[f'{section}.{name}'] = np.array(each, np.float32)
    return values


def _alpha(adapter: AdapterConfig, rank: int) -> float:
    """The α with which a larger rank has the adapter's scale."""
    ratio = rank / adapter.rank
    return adapter.alpha * (ratio**0.5 if adapter.rank_stabilized else ratio)


def with_values(run: RunConfig, values: Mapping[str, jax.Array]) -> RunConfig:
    """The config of a run with traced values in the place of its own; they cannot be checked."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in _FIELDS}
    for dotted, value in values.items():
        section, _, name = dotted.partition('.')
        if name:
            sections[section][name] = value
    changed = {
        section: _unchecked(getattr(run, section), given) for section, given in sections.items()
    }
    return _unchecked(run, changed | {'seed': values['seed']})


def _unchecked(section: _Section, changes: Mapping[str, Any]) -> _Section:
    """A copy of a frozen dataclass with other values, whatever their types."""
    copied = copy.copy(section)
    for name, value in changes.items():
        object.__setattr__(copied, name, value)
    return copied

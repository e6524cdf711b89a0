"""Groups of runs in a sweep that can train jointly, with one compiled step."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from malora_jax.adapters.settings import replace_settings
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import CONFIG_FIELDS

# States with smaller ranks are padded, and beta affects only the initial state.
_FREE_FIELDS = (*CONFIG_FIELDS, 'adapter.rank', 'adapter.beta')
# The compiled step differs between zero and nonzero values of these fields.
_SWITCHES = ('adapter.dropout', 'adapter.balance_weight', 'adapter.shared_rank')


def joint_groups(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Group the runs that can train jointly.

    The configs of a group differ only in the ranks, in beta, and in the hyperparameters that are
    arguments of the compiled training step: seed, learning rates, weight decay, gradient clipping,
    alpha, dropout rate and load-balancing weight. Dropout, the load-balancing loss and the shared
    subspace are each present in all runs of a group or in none. Runs of GOAT also have the same
    rank.

    Args:
        configs: Configs as written in configs/, by run name.

    Returns:
        Run names of each group, in the order of `configs`.
    """
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        fields = flatten_dict(dict(config), sep='.')
        shared = {field: value for field, value in fields.items() if field not in _FREE_FIELDS}
        shared |= {field: fields[field] > 0 for field in _SWITCHES}
        if fields.get('adapter.start') == 'svd':
            # The factor of GOAT's update depends on the rank, also at equal scales.
            shared['adapter.rank'] = fields['adapter.rank']
        groups.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(name)
    return list(groups.values())


def with_largest_ranks(runs: Sequence[RunConfig]) -> RunConfig:
    """Return the config for which the joint step of several runs is compiled.

    It is the first run's config with the largest rank and the largest shared rank among the runs.
    The states of runs with smaller ranks are padded.
    """
    structures = [run.adapter.structure for run in runs]
    adapter = replace_settings(
        runs[0].adapter,
        rank=max(structure.rank for structure in structures),
        shared_rank=max(structure.subspace_rank for structure in structures),
    )
    return dataclasses.replace(runs[0], adapter=adapter)

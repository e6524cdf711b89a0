"""Expansion of a sweep into its runs, each with its complete config."""

import collections
import dataclasses
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from malora_jax import commands, errors
from malora_jax.sweeps.config import SweepConfig, sweep_config
from malora_jax.sweeps.points import Point, points
from malora_jax.sweeps.subspace import check_subspace_setting, set_subspace_ranks
from malora_jax.training import run_config


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        name: Name of the run and its directory, SEED_GROUP-seedN.
        seed_group: Name of the seed group: the runs that differ only in their random seed.
        variant: Name of the run's entry in `runs` of the sweep.
        seed: Random seed of the run.
        values: Values of the swept fields by dotted name, as the sweep sets them.
        config: Config as written in configs/, as plain dicts.

    Example:
        run = expand(config)['malora-rank8-seed0']
        run.values  # {'adapter.rank': 8}
    """

    name: str
    seed_group: str
    variant: str
    seed: int
    values: Point
    config: dict[str, Any]


def expand(config: Mapping[str, Any]) -> dict[str, SweepRun]:
    """Return the runs of a sweep, by name.

    Example:
        config = {'base': 'configs/quickstart.py', 'seeds': (0,), 'runs': {'lora': {'arg': 'lora'}}}
        runs = expand(config)  # {'lora-seed0': SweepRun(...)}

    Args:
        config: Config of the sweep, as plain dicts.

    Raises:
        UserError: The sweep is invalid, its base is not a config file, or a run would be invalid;
            the message names the run.
    """
    sweep = sweep_config(config)
    get_config = _get_config(sweep.base)
    labels = _labels(sweep.all_fields)
    runs = {}
    for variant in sweep.runs:
        for point in points(sweep, variant):
            parts = [f'{labels[name]}{_text(value)}' for name, value in point.items()]
            row = '-'.join([variant, *parts])
            full_config = _config(sweep, get_config, variant, point)
            for seed in sweep.seeds_of(variant):
                name = f'{row}-seed{seed}'
                if name in runs:
                    raise errors.UserError(f'Two runs of the sweep would be named {name}.')
                full_config.seed = seed
                runs[name] = SweepRun(name, row, variant, seed, point, full_config.to_dict())
            _check(row, full_config)
    return runs


def _get_config(path: str) -> Callable[[str], ConfigDict]:
    try:
        return runpy.run_path(commands.find_config(path))['get_config']
    except (FileNotFoundError, IsADirectoryError) as error:
        raise errors.UserError(f'base is {path!r}: there is no such file.') from error
    except KeyError as error:
        raise errors.UserError(f'base is {path!r}, which defines no get_config.') from error


def _config(
    sweep: SweepConfig, get_config: Callable[[str], ConfigDict], variant: str, point: Point
) -> ConfigDict:
    """Return the complete config of a run, apart from its seed."""
    run = sweep.runs[variant]
    config = get_config(run['arg'])
    for name, value in flatten_dict(dict(run.get('overrides', {})), sep='.').items():
        _set(config, name, value, f'runs.{variant}.overrides')
    for name, value in point.items():
        _set(config, name, value, 'the sweep')
    check_subspace_setting(sweep, variant, config)
    if sweep.subspace_share:
        set_subspace_ranks(config, sweep.subspace_share, point)
    return config


def _set(config: ConfigDict, name: str, value: Any, where: str) -> None:
    known = flatten_dict(config.to_dict(), sep='.')
    if name not in known:
        raise errors.unknown_name(f'field of a run in {where}', name, known)
    *sections, field = name.split('.')
    section = config
    for part in sections:
        section = section[part]
    try:
        section[field] = value
    except (TypeError, ValueError) as error:
        raise errors.UserError(
            f'{name} cannot be {value!r} in {where}: the base has {known[name]!r} there.'
        ) from error


def _check(row: str, config: ConfigDict) -> None:
    with errors.prefix_errors(row):
        run_config(config.to_dict())


def _labels(fields: Iterable[str]) -> dict[str, str]:
    """Return a short label for each field, which becomes a part of the names of runs.

    The label is the last part of the field's dotted name, such as 'rank' for 'adapter.rank'. If
    several fields have the same last part, their labels are the whole dotted names.
    """
    fields = list(fields)
    last = collections.Counter(name.rsplit('.', 1)[-1] for name in fields)
    short = {name: name.rsplit('.', 1)[-1] for name in fields}
    return {name: part if last[part] == 1 else name for name, part in short.items()}


def _text(value: Any) -> str:
    """Return a value as text for the name of a run, such as '0.001', or '1+2' for (1, 2)."""
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, (tuple, list)):
        return '+'.join(map(_text, value))
    return re.sub(r'[^\w.+-]', '_', str(value))

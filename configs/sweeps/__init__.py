"""The paper's tables as data: what to run for each, and how often.

A sweep is a config with the fields
    base: the config file that its runs start from, such as 'configs/inter_domain.py';
    seeds: every run is made with each of them;
    runs: by name, `arg` for that file, and `overrides` by section where there are any.
"""

import runpy
from collections.abc import Mapping
from typing import Any

from malora_jax.errors import UserError


def expand(sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of a sweep, by the names of their directories: NAME-seedN.

    Args:
        sweep: a config of this package as plain dicts.

    Returns:
        The config of each run, as plain dicts.

    Raises:
        UserError: the base is no config file, or a run overrides what cannot be overridden so.
    """
    get_config = _get_config(sweep['base'])
    configs = {}
    for name, run in sweep['runs'].items():
        for seed in sweep['seeds']:
            config = get_config(run['arg'])
            try:
                config.update(run.get('overrides', {}))
            except (AttributeError, TypeError) as error:
                raise UserError(f'runs.{name}.overrides does not fit: {error}') from error
            config.seed = seed
            configs[f'{name}-seed{seed}'] = config.to_dict()
    return configs


def _get_config(path: str) -> Any:
    try:
        return runpy.run_path(path)['get_config']
    except FileNotFoundError as error:
        raise UserError(f'base is {path!r}: there is no such file.') from error
    except KeyError as error:
        raise UserError(f'base is {path!r}, which defines no get_config.') from error

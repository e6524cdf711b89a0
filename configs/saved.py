"""Config of an existing run, to repeat the run or to change some of its fields.

Command:
    python -m experiments.train --config=configs/saved.py:runs/quickstart/config.json \
      --workdir=runs/again --config.seed=1

The argument is the path of the run's config.json. A sweep starts its runs in this way, from the
configs in the directory sweep/configs of its workdir.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from malora_jax.errors import UserError
from malora_jax.training.config_format import read_config


def get_config(arg: str = '') -> ConfigDict:
    """Return the config in the file named by `arg`.

    Raises:
        UserError: There is no such file, or it is not a config.
    """
    path = pathlib.Path(arg).expanduser()
    if not path.is_file():
        raise UserError(
            f'There is no file {arg!r}: give the path of the config.json of a run, '
            '--config=configs/saved.py:PATH.'
        )
    return ConfigDict(_lists_to_tuples(read_config(path)))


def _lists_to_tuples(value: Any) -> Any:
    """Return a JSON value with lists converted to tuples, as configs have them."""
    if isinstance(value, Mapping):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value

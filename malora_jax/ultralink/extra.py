"""The libraries of the extra `ultralink`, imported where they are needed."""

import importlib
from typing import Any

from malora_jax.errors import UserError


def require(module: str) -> Any:
    """A module of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition('.')[0]
        if (error.name or '').partition('.')[0] != name:
            raise
        raise UserError(
            f"{name} is not installed: run pip install 'malora_jax[ultralink]'."
        ) from error

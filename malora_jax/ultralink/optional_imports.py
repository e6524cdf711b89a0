"""Lazy imports of the optional dependencies in the extra `ultralink`."""

import importlib
from typing import Any

from malora_jax import errors


def import_extra(module: str) -> Any:
    """Import and return a module of the extra `ultralink`.

    Args:
        module: Full name of the module, such as 'py3langid.langid'.

    Raises:
        UserError: The package is not installed.
        ModuleNotFoundError: The package is installed, but a package that it needs is not.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition('.')[0]
        if (error.name or '').partition('.')[0] != name:
            raise
        raise errors.missing_extra(f'{name} is not installed', 'ultralink') from error

"""Checks of a config's numbers, which name the field and what would be right."""

from typing import Any

from malora_jax import errors


def positive(section: str, values: Any, *fields: str) -> None:
    """Checks that fields of a section are above zero.

    Raises:
        UserError: the first that is not.
    """
    for field in fields:
        value = getattr(values, field)
        require(value > 0, f'{section}.{field}', value, 'positive')


def at_least(least: int, section: str, values: Any, *fields: str) -> None:
    """Checks that fields of a section are not below a number.

    Raises:
        UserError: the first that is.
    """
    for field in fields:
        value = getattr(values, field)
        require(value >= least, f'{section}.{field}', value, f'at least {least}')


def at_most(most: int, section: str, values: Any, *fields: str) -> None:
    """Checks that fields of a section are not above a number.

    Raises:
        UserError: the first that is.
    """
    for field in fields:
        value = getattr(values, field)
        require(value <= most, f'{section}.{field}', value, f'at most {most:,}')


def require(right: Any, field: str, value: Any, description: str) -> None:
    """Checks one field.

    Args:
        right: whether its value will do.
        field: its name.
        value: what it is.
        description: what would do, after 'it must be'.

    Raises:
        UserError: it will not do.
    """
    if not right:
        raise errors.out_of_range(field, value, description)

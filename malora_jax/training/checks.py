"""Range checks of config fields, with messages that name the field and the valid values."""

from typing import Any

from malora_jax import errors


def positive(section: str, values: Any, *fields: str) -> None:
    """Check that fields of a config section are positive.

    Args:
        section: Name of the section.
        values: Section with these fields as attributes.
        *fields: Names of the fields.

    Raises:
        UserError: A field is zero or negative.
    """
    for field in fields:
        value = getattr(values, field)
        require(value > 0, f'{section}.{field}', value, 'positive')


def at_least(least: int, section: str, values: Any, *fields: str) -> None:
    """Check a lower bound of fields of a config section.

    Args:
        least: Lowest valid value.
        section: Name of the section.
        values: Section with these fields as attributes.
        *fields: Names of the fields.

    Raises:
        UserError: A field is below the bound.
    """
    for field in fields:
        value = getattr(values, field)
        require(value >= least, f'{section}.{field}', value, f'at least {least}')


def at_most(most: int, section: str, values: Any, *fields: str) -> None:
    """Check an upper bound of fields of a config section.

    Args:
        most: Highest valid value.
        section: Name of the section.
        values: Section with these fields as attributes.
        *fields: Names of the fields.

    Raises:
        UserError: A field is above the bound.
    """
    for field in fields:
        value = getattr(values, field)
        require(value <= most, f'{section}.{field}', value, f'at most {most:,}')


def require(right: Any, field: str, value: Any, description: str) -> None:
    """Check a condition on one config field.

    Args:
        right: True if the value is valid.
        field: Dotted name of the field.
        value: Value of the field.
        description: Description of the valid values, which follows 'it must be' in the message.

    Raises:
        UserError: The value is not valid.
    """
    if not right:
        raise errors.out_of_range(field, value, description)

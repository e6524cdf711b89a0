"""Range checks of config fields, with messages that name the field and the valid values."""

from typing import Any

from malora_jax import errors


def check_positive(section: str, values: Any, *fields: str) -> None:
    """Check that fields of a config section are positive.

    Args:
        section: Name of the section.
        values: The config section, such as a `DataConfig`, with the checked fields as attributes.
        *fields: Names of the fields to check.

    Raises:
        UserError: A field is zero or negative.
    """
    for field in fields:
        value = getattr(values, field)
        check_field(value > 0, f'{section}.{field}', value, 'positive')


def check_min(min_value: int, section: str, values: Any, *fields: str) -> None:
    """Check a lower bound of fields of a config section.

    Args:
        min_value: Lowest valid value.
        section: Name of the section.
        values: The config section, such as a `DataConfig`, with the checked fields as attributes.
        *fields: Names of the fields to check.

    Raises:
        UserError: A field is below the bound.
    """
    for field in fields:
        value = getattr(values, field)
        check_field(value >= min_value, f'{section}.{field}', value, f'at least {min_value}')


def check_max(max_value: int, section: str, values: Any, *fields: str) -> None:
    """Check an upper bound of fields of a config section.

    Args:
        max_value: Highest valid value.
        section: Name of the section.
        values: The config section, such as a `DataConfig`, with the checked fields as attributes.
        *fields: Names of the fields to check.

    Raises:
        UserError: A field is above the bound.
    """
    for field in fields:
        value = getattr(values, field)
        check_field(value <= max_value, f'{section}.{field}', value, f'at most {max_value:,}')


def check_field(is_valid: Any, field: str, value: Any, description: str) -> None:
    """Check a condition on one config field.

    Args:
        is_valid: True if the value is valid.
        field: Dotted name of the field.
        value: Value of the field.
        description: Description of the valid values, which follows 'it must be' in the message.

    Raises:
        UserError: The value is not valid.
    """
    if not is_valid:
        raise errors.out_of_range(field, value, description)

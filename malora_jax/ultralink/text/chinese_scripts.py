"""Simplified and traditional Chinese characters, with the tables of OpenCC."""

import functools
from typing import Any

from malora_jax.ultralink.optional_imports import import_extra


def to_simplified(text: str) -> str:
    """Convert traditional Chinese characters to simplified ones with OpenCC's `t2s`.

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    return _converter('t2s').convert(text)


def is_traditional(text: str) -> bool:
    """Return whether a text has more traditional-only than simplified-only characters.

    Raises:
        UserError: The extra `ultralink` is not installed.
    """
    return sum(map(_written_only('t2s').__contains__, text)) > sum(
        map(_written_only('s2t').__contains__, text)
    )


@functools.cache
def _converter(direction: str) -> Any:
    return import_extra('opencc').OpenCC(direction)


@functools.cache
def _written_only(direction: str) -> frozenset[str]:
    """Return the Chinese characters that belong to one script only, traditional or simplified.

    They are the characters that a conversion to the other script changes.

    Args:
        direction: OpenCC conversion: 't2s' to return the traditional-only characters, 's2t' to
            return the simplified-only characters.
    """
    characters = [chr(code) for code in range(0x4E00, 0xA000)]
    converted = _converter(direction).convert('\n'.join(characters)).split('\n')
    return frozenset(old for old, new in zip(characters, converted, strict=True) if old != new)

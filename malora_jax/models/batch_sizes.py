"""Sizes of the arrays in text generation: only a few, so that only a few shapes are compiled."""

import itertools

# Number of slots: 1, or this number times a power of `_GROWTH`, or the maximum of the engine. A
# step takes longer with more slots.
_MIN_SLOTS = 8
# KV cache length: this one times a power of `_GROWTH`, or the length that the texts need at most.
_MIN_CACHE_LENGTH = 64
_GROWTH = 4
# Padded length of prompts: this one times a power of two.
_MIN_PROMPT_LENGTH = 16


def num_slots(needed: int, maximum: int) -> int:
    """Return the number of slots for a number of texts.

    Args:
        needed: Number of texts.
        maximum: Maximum number of slots, at least `needed`.
    """
    sizes = itertools.chain([1], (_MIN_SLOTS * _GROWTH**i for i in itertools.count()))
    return min(maximum, next(size for size in sizes if size >= needed))


def cache_length(needed: int, maximum: int) -> int:
    """Return the KV cache length for some texts, in tokens per slot.

    Args:
        needed: Number of tokens of the longest text after the next decode steps.
        maximum: Number of tokens that the longest text may get.
    """
    sizes = (_MIN_CACHE_LENGTH * _GROWTH**i for i in itertools.count())
    length = next(size for size in sizes if size >= min(needed, maximum))
    return min(length, _power_of_two(_MIN_CACHE_LENGTH, maximum))


def prompt_length(num_tokens: int) -> int:
    """Return the length to which prompts with a number of tokens are padded."""
    return _power_of_two(_MIN_PROMPT_LENGTH, num_tokens)


def _power_of_two(minimum: int, needed: int) -> int:
    """Return the smallest length of at least `needed` that is `minimum` times a power of two."""
    return minimum << max(0, (-(-needed // minimum) - 1).bit_length())

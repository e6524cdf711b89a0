"""Compilation with few optimizations, for tests that spend most of their time compiling."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def few_optimizations(few: bool = True) -> Iterator[None]:
    """Disable most compiler optimizations, or enable them, and return to the setting before.

    Unoptimized programs round differently, so JAX forgets compiled programs when the setting
    changes.
    """
    name = 'jax_disable_most_optimizations'
    before = jax.config.values[name]
    if few == before:
        yield
        return
    jax.clear_caches()
    jax.config.update(name, few)
    try:
        yield
    finally:
        jax.config.update(name, before)
        jax.clear_caches()

"""Compilation with few optimizations, for tests that spend most of their time compiling."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def few_optimizations() -> Iterator[None]:
    """Disable most compiler optimizations; within such a context, change nothing.

    Unoptimized programs round differently, so JAX forgets compiled programs before and after.
    """
    if jax.config.values['jax_disable_most_optimizations']:
        yield
        return
    jax.clear_caches()
    jax.config.update('jax_disable_most_optimizations', True)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', False)
        jax.clear_caches()

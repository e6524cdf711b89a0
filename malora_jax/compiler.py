"""Directions for XLA's compilers."""

import jax


def barrier_on_cpu(x: jax.Array) -> jax.Array:
    """Return x, which the compiler for CPUs combines with nothing after it.

    Elsewhere, nothing is added to the program.

    Args:
        x: Any array.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)

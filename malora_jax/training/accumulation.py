"""Gradient accumulation: sum the gradients of several micro-batches before one optimizer step.

Dimension letters: A micro-batches of a step, B rows of a micro-batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.distributed import sharding

Batch = Mapping[str, Any]


def accumulate_gradients(
    objective: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]],
    trained: Any,
    batch: Batch,
    keys_A: jax.Array,
) -> tuple[Any, Any]:
    """Return the gradient of an objective, summed over the micro-batches of a batch.

    Micro-batches are processed one after the other, so that the activations of only one of them are
    in memory.

    Args:
        objective: Function of (trained, micro-batch, key) that returns the scalar to differentiate
            and a pytree of auxiliary arrays.
        trained: Pytree to differentiate with respect to.
        batch: Arrays of A · B rows, by name. Micro-batch i is rows i · B to (i + 1) · B.
        keys_A: (A,), random key of each micro-batch.

    Returns:
        The summed gradient, and the summed auxiliary arrays.
    """
    gradient_of = jax.grad(objective, has_aux=True)
    if len(keys_A) == 1:
        return gradient_of(trained, batch, keys_A[0])

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
        gradients, auxiliary = gradient_of(trained, *part)
        return jax.tree.map(jnp.add, total, gradients), auxiliary

    micro_batches = {
        name: rows.reshape(len(keys_A), -1, *rows.shape[1:]) for name, rows in batch.items()
    }
    micro_batches = {
        name: sharding.constrain(x, 'parts', 'rows', *['features'] * (x.ndim - 2))
        for name, x in micro_batches.items()
    }
    zeros = jax.tree.map(jnp.zeros_like, trained)
    gradients, auxiliary_A = jax.lax.scan(add, zeros, (micro_batches, keys_A))
    return gradients, jax.tree.map(lambda values: values.sum(axis=0), auxiliary_A)

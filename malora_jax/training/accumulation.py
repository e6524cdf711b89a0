"""The gradient of a step whose rows do not fit into memory together: part by part.

Dimension letters: A parts of a step, B rows of a part.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.distributed import rules

Rows = Mapping[str, Any]


def summed_gradients(
    objective: Callable[[Any, Rows, jax.Array], tuple[jax.Array, Any]],
    trained: Any,
    batch: Rows,
    keys_A: jax.Array,
) -> tuple[Any, Any]:
    """The gradient of the sum of an objective over the parts of a batch, with one part in memory.

    Args:
        objective: (trained, rows, key) to the value to be differentiated and a tree of arrays.
        trained: the tree to differentiate with respect to.
        batch: arrays of A · B rows; part i is rows i · B to (i + 1) · B.
        keys_A: a random key for each part.

    Returns:
        The summed gradient, and the objective's trees summed.
    """
    gradient_of = jax.grad(objective, has_aux=True)
    if len(keys_A) == 1:
        return gradient_of(trained, batch, keys_A[0])

    def add(total: Any, part: tuple[Rows, jax.Array]) -> tuple[Any, Any]:
        gradients, found = gradient_of(trained, *part)
        return jax.tree.map(jnp.add, total, gradients), found

    parts = {name: rows.reshape(len(keys_A), -1, *rows.shape[1:]) for name, rows in batch.items()}
    parts = {
        name: rules.constrain(x, 'parts', 'rows', *['features'] * (x.ndim - 2))
        for name, x in parts.items()
    }
    zeros = jax.tree.map(jnp.zeros_like, trained)
    gradients, each = jax.lax.scan(add, zeros, (parts, keys_A))
    return gradients, jax.tree.map(lambda values: values.sum(axis=0), each)

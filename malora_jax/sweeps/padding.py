"""States of different ranks as one shape: zeros in the place of ranks that a run does not have.

A rank whose row of A and column of B are zero has no part in the update, and no gradient: that of
each is a product with the other. Adam leaves it at zero, decay too. The same holds of a dimension
of the subspace, between S_A and P. So nothing needs to be masked.
"""

from typing import Any

import jax
import jax.numpy as jnp


def shapes(tree: Any) -> Any:
    """The shape of each leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def pad(tree: Any, like: Any) -> Any:
    """Leaves of the shapes of `like`, with zeros behind what there is."""

    def padded(leaf: jax.Array, shape: Any) -> jax.Array:
        widths = [(0, new - old) for old, new in zip(leaf.shape, shape.shape, strict=True)]
        return jnp.pad(leaf, widths) if leaf.shape != shape.shape else leaf

    return jax.tree.map(padded, tree, like)


def cut(tree: Any, like: Any) -> Any:
    """What was padded, as it was."""
    return jax.tree.map(
        lambda leaf, shape: leaf[tuple(slice(size) for size in shape.shape)], tree, like
    )

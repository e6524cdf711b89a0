"""States of several runs as one tree with a leading axis, padded to equal ranks with zeros.

A rank whose row of A and column of B are zero has no part in the update, and no gradient: that of
each is a product with the other. Adam leaves it at zero, decay too. The same holds for a dimension
of the subspace, between S_A and P. So nothing needs to be masked.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of equal shapes along a new first axis, one entry for each run."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: int | np.ndarray) -> Any:
    """Return the entry of one run of a stacked tree, or those of several."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def shapes(tree: Any) -> Any:
    """Return the shape and dtype of each leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def pad(tree: Any, like: Any) -> Any:
    """Append zeros to each leaf, up to the shapes of `like`."""

    def padded(leaf: jax.Array, shape: Any) -> jax.Array:
        widths = [(0, new - old) for old, new in zip(leaf.shape, shape.shape, strict=True)]
        return jnp.pad(leaf, widths) if leaf.shape != shape.shape else leaf

    return jax.tree.map(padded, tree, like)


def cut(tree: Any, like: Any) -> Any:
    """Remove the padding: cut each leaf to the shapes of `like`."""
    return jax.tree.map(
        lambda leaf, shape: leaf[tuple(slice(size) for size in shape.shape)], tree, like
    )

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
    """Stack trees along a new first axis, each leaf padded to the largest shape among them."""

    def padded(leaf: Any, shape: tuple[int, ...]) -> Any:
        widths = [(0, new - old) for old, new in zip(leaf.shape, shape, strict=True)]
        return jnp.pad(leaf, widths) if leaf.shape != shape else leaf

    def stacked(*leaves: Any) -> jax.Array:
        sizes = zip(*(leaf.shape for leaf in leaves), strict=True)
        shape = tuple(max(of_axis) for of_axis in sizes)
        return jnp.stack([padded(leaf, shape) for leaf in leaves])

    return jax.tree.map(stacked, *trees)


def take(tree: Any, index: int | np.ndarray) -> Any:
    """Return the entry of one run of a stacked tree, or those of several."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def cut(tree: Any, like: Any) -> Any:
    """Remove the padding: cut each leaf to the shape of that of `like`."""
    return jax.tree.map(
        lambda leaf, shape: leaf[tuple(slice(size) for size in shape.shape)], tree, like
    )

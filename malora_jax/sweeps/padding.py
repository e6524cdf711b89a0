"""States of several runs as one tree with a leading axis, padded with zeros to equal ranks.

A padded rank, with zeros in its row of A and its column of B, does not change the update. Its
gradients are zero too, because each of the two gradients is a product with the other factor. Adam
and weight decay therefore leave it at zero. The same holds for a dimension of the subspace, between
S_A and the core P. So no masking is needed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def pad_and_stack(trees: Sequence[Any]) -> Any:
    """Stack trees along a new first axis, each leaf padded to the largest shape among them.

    Args:
        trees: Trees of arrays with the same structure.
    """

    def padded(leaf: Any, shape: tuple[int, ...]) -> Any:
        widths = [(0, new - old) for old, new in zip(leaf.shape, shape, strict=True)]
        return jnp.pad(leaf, widths) if leaf.shape != shape else leaf

    def stacked(*leaves: Any) -> jax.Array:
        sizes = zip(*(leaf.shape for leaf in leaves), strict=True)
        shape = tuple(max(of_axis) for of_axis in sizes)
        return jnp.stack([padded(leaf, shape) for leaf in leaves])

    return jax.tree.map(stacked, *trees)


def take(tree: Any, index: int | np.ndarray) -> Any:
    """Return one run's entry of a stacked tree, or the entries of several runs.

    Args:
        tree: Stacked tree; the first axis of each leaf is the run.
        index: Index of the run, or an array of indices.
    """
    return jax.tree.map(lambda leaf: leaf[index], tree)


def unpad(tree: Any, like: Any) -> Any:
    """Remove the padding: slice each leaf to the shape of the matching leaf in `like`.

    Args:
        tree: Padded tree of one run.
        like: Tree of arrays or shapes with the same structure.
    """
    return jax.tree.map(
        lambda leaf, shape: leaf[tuple(slice(size) for size in shape.shape)], tree, like
    )

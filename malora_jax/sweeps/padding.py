"""States of several runs as one tree with a leading axis, padded with zeros to equal ranks.

A larger rank means additional rows of A (down-projection) and columns of B (up-projection). If both
are zero, they do not change the update B A. Their gradients are zero too: the gradient of such a
row of A is a product with the zero column of B, and vice versa. Adam and weight decay therefore
leave them at zero, so no masking is needed. The same holds for additional dimensions of the shared
subspace: rows of S_A (shared down-projection) and columns of P (core matrix).
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

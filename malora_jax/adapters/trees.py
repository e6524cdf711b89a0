"""Counting and naming of parameters in adapter trees."""

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax

# The collections that an adapter's leaves are in: those that train, and those that do not.
COLLECTIONS = ('adapter', 'adapter_frozen')


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of slash-separated path and leaf, in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield '/'.join(str(getattr(key, 'key', key)) for key in path), leaf


def count(tree: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_by_name(tree: Any) -> dict[str, int]:
    """The number of scalars by the last part of the leaf's path: router, core or another."""
    counts: collections.Counter[str] = collections.Counter()
    for path, leaf in named_leaves(tree):
        counts[path.rsplit('/', 1)[-1]] += math.prod(leaf.shape)
    return dict(sorted(counts.items()))

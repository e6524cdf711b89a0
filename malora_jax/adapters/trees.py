"""Names and counts of the parameters in a pytree."""

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax

# Flax collections of an adapter: trained parameters, and frozen ones.
ADAPTER_COLLECTIONS = ('adapter', 'adapter_frozen')


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the slash-separated path and the value of each leaf, in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield '/'.join(str(getattr(key, 'key', key)) for key in path), leaf


def count(tree: Any) -> int:
    """Return the number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_by_name(tree: Any) -> dict[str, int]:
    """Return the number of scalars by parameter name, the last part of a path, such as 'core'."""
    counts: collections.Counter[str] = collections.Counter()
    for path, leaf in named_leaves(tree):
        counts[path.rsplit('/', 1)[-1]] += math.prod(leaf.shape)
    return dict(sorted(counts.items()))

"""Parameters in a pytree: their names and counts, and those of one linear layer."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# Flax collections of an adapter: trained parameters, and frozen ones.
ADAPTER_COLLECTIONS = ('adapter', 'adapter_frozen')
_PARENT_MODULES = {'q': 'attention', 'k': 'attention', 'v': 'attention', 'o': 'attention'}


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the slash-separated path and the value of each leaf, in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield '/'.join(str(getattr(key, 'key', key)) for key in path), leaf


def leaves_by_name(tree: Any) -> dict[str, list[Any]]:
    """Return the leaves of each parameter, by the last part of their paths, such as 'core'."""
    leaves: dict[str, list[Any]] = {}
    for path, leaf in named_leaves(tree):
        leaves.setdefault(path.rpartition('/')[2], []).append(leaf)
    return leaves


def count(tree: Any) -> int:
    """Return the number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_by_name(tree: Any) -> dict[str, int]:
    """Return the number of scalars by parameter name, the last part of a path, such as 'core'."""
    return {name: count(leaves) for name, leaves in sorted(leaves_by_name(tree).items())}


def linear_leaves(variables: Mapping[str, Any], target: str) -> dict[str, jax.Array]:
    """Return the adapter's parameter arrays of one linear layer, for all transformer layers.

    Args:
        variables: Variable collections of the model.
        target: Name of the linear layer, such as 'q'.

    Returns:
        Arrays (L, ...), stacked over the transformer layers, by name, such as `down` and `up`.
    """
    leaves: dict[str, jax.Array] = {}
    for name in ADAPTER_COLLECTIONS:
        tree = variables.get(name, {}).get('layers', {})
        leaves |= tree.get(parent_module(target), {}).get(target, {})
    return leaves


def layer_tree(leaves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a collection of the decoder, the inverse of `linear_leaves`.

    Args:
        leaves: Arrays (L, ...) by name of the linear layer, then by name of the parameter.
    """
    parts: dict[str, dict[str, Any]] = {}
    for target, arrays in leaves.items():
        parts.setdefault(parent_module(target), {})[target] = dict(arrays)
    return {'layers': parts}


def parent_module(target: str) -> str:
    """Return the name of the module that a linear layer is in: 'attention' or 'mlp'."""
    return _PARENT_MODULES.get(target, 'mlp')

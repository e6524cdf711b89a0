"""Mapping between the parameters of a torch peer and the leaves of our adapter."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.peers.jax_system import Leaves
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.models import ModelConfig
from malora_jax.models.loading import tensor_names


class ParameterLink(NamedTuple):
    """A parameter of a peer, and the position of its transpose in our adapter.

    Attributes:
        name: Name of the parameter.
        path: Path of our leaf.
        leaf_index: Index into the leaf: the layer, then the expert if the leaf has experts.
    """

    name: str
    path: str
    leaf_index: tuple[int, ...]


def make_links(
    leaves: Leaves, config: ModelConfig, patterns: Mapping[str, str]
) -> list[ParameterLink]:
    """Return links from the peer's parameters to all of our leaves.

    Args:
        leaves: Leaves of our adapter by path.
        config: Configuration of the base model.
        patterns: For each name of our leaves (`down`, `up`, ...), a format string of the peer's
            parameter name. {linear} is replaced by a name such as layers.0.self_attn.q_proj,
            and {expert} by the number of the expert.
    """
    linears = _linears(config)
    links = []
    for path, leaf in leaves.items():
        parent, kind = path.rsplit('/', 1)
        for leaf_index in _leaf_indices(kind, leaf):
            name = patterns[kind].format(
                linear=linears[parent][leaf_index[0]], expert=leaf_index[-1]
            )
            links.append(ParameterLink(name, path, leaf_index))
    return links


def linear_names(config: ModelConfig, targets: tuple[str, ...]) -> list[str]:
    """Return the names of a layer's adapted linear modules in `transformers`, such as q_proj."""
    linears = _linears(config)
    adapted = [path for path in linears if path.rsplit('/', 1)[1] in targets]
    return [linears[path][0].rsplit('.', 1)[1] for path in adapted]


def _linears(config: ModelConfig) -> dict[str, list[str]]:
    """Return the names of all linear modules in `transformers`, by the path of the module here.

    Here, the modules of all layers have one path, so each path has a list with a name for each
    layer.
    """
    return {
        leaf.path.removesuffix('/kernel'): [
            name.removeprefix('model.').removesuffix('.weight') for name in leaf.tensor_names
        ]
        for leaf in tensor_names.leaves(config, 'huggingface')
        if leaf.path.endswith('/kernel')
    }


def _leaf_indices(kind: str, leaf: np.ndarray) -> Iterator[tuple[int, ...]]:
    return np.ndindex(leaf.shape[:2] if kind in IndependentExperts.factors else leaf.shape[:1])

"""Links between the parameters of a peer in torch and the leaves of our adapter."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.peers.ours import Leaves
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.models import ModelConfig
from malora_jax.models.loading import names


class Link(NamedTuple):
    """A parameter, and where our tree has its transpose.

    Attributes:
        name: Name of the parameter.
        path: Path of our leaf.
        part: Index into the leaf: the layer, then the expert if the leaf has experts.
    """

    name: str
    path: str
    part: tuple[int, ...]


def make_links(leaves: Leaves, config: ModelConfig, patterns: Mapping[str, str]) -> list[Link]:
    """The parameters of a peer for all of our leaves.

    Args:
        leaves: of our adapter.
        config: the base.
        patterns: the parameter's name by that of our leaf (`down`, `up`, ...), with {linear} for
            such as layers.0.self_attn.q_proj, and {expert}.
    """
    linears = _linears(config)
    links = []
    for path, leaf in leaves.items():
        parent, kind = path.rsplit('/', 1)
        for part in _parts(kind, leaf):
            name = patterns[kind].format(linear=linears[parent][part[0]], expert=part[-1])
            links.append(Link(name, path, part))
    return links


def linear_names(config: ModelConfig, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the adapted linears of a layer in `transformers`, such as q_proj."""
    linears = _linears(config)
    adapted = [path for path in linears if path.rsplit('/', 1)[1] in targets]
    return [linears[path][0].rsplit('.', 1)[1] for path in adapted]


def _linears(config: ModelConfig) -> dict[str, list[str]]:
    """The linears of `transformers`, one a layer, by our path."""
    return {
        leaf.path.removesuffix('/kernel'): [
            name.removeprefix('model.').removesuffix('.weight') for name in leaf.names
        ]
        for leaf in names.leaves(config, 'huggingface')
        if leaf.path.endswith('/kernel')
    }


def _parts(kind: str, leaf: np.ndarray) -> Iterator[tuple[int, ...]]:
    return np.ndindex(leaf.shape[:2] if kind in IndependentExperts.factors else leaf.shape[:1])

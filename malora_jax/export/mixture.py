"""Routed mixtures as other programs compute them: dense experts, and a description in JSON.

A mixture adapts a linear layer W to W x + s · Σ_t G_t(x) B_t A_t x, with the scale s and the gate
G_t of expert t. The structures compute B_t A_t from several factors, some of which the experts
share. Other programs know only A_t, B_t and the router's weight, which `fold` multiplies out.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, R rank of one
expert.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from malora_jax.adapters import AdapterConfig
from malora_jax.errors import UserError
from malora_jax.export import huggingface_names
from malora_jax.export.merge import check_nonzero_update, linear_leaves_float64
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel

# Version of the block that `mixture_block` returns.
SCHEMA_VERSION = 1


class DenseExperts(NamedTuple):
    """Experts of one linear layer, in all transformer layers, as float64 arrays.

    Attributes:
        down: (L, E, D, R), down-projection A_t of each expert, transposed.
        up: (L, E, R, F), up-projection B_t of each expert, transposed.
        router: (L, D, E), weight of the router, transposed; zeros for a single expert.
    """

    down: np.ndarray
    up: np.ndarray
    router: np.ndarray

    def stacked_down(self) -> np.ndarray:
        """Return the experts' A_t below each other, (L, E · R, D)."""
        L, E, D, R = self.down.shape
        return self.down.swapaxes(2, 3).reshape(L, E * R, D)

    def stacked_up(self) -> np.ndarray:
        """Return the experts' B_t next to each other, (L, F, E · R)."""
        L, E, R, F = self.up.shape
        return self.up.reshape(L, E * R, F).swapaxes(1, 2)


def fold(adapter: AdapterConfig, leaves: Mapping[str, np.ndarray]) -> DenseExperts:
    """Multiply the factors of each expert out to one down-projection and one up-projection.

    Args:
        adapter: Settings of the adapter.
        leaves: Float64 parameters of one linear layer in all transformer layers, (L, ...), by name.

    Raises:
        UserError: An expert of the adapter's structure is not a product of two matrices.
    """
    down, up = adapter.structure.projections(leaves)
    L, E, R, _ = up.shape
    D = down.shape[2]
    router = leaves['router'] if adapter.has_router else np.zeros((L, D, E))
    if adapter.has_router and adapter.router.input != 'x':
        # The router reads the product of the input with the shared first factor.
        router = leaves[adapter.structure.factors[0]] @ router
    return DenseExperts(np.broadcast_to(down, (L, E, D, R)), up, router)


def dense_experts(
    trained: TrainedModel | TrainedAdapter,
) -> Iterator[tuple[str, DenseExperts]]:
    """Yield the name of each adapted linear layer, such as 'q', and its dense experts.

    Large models do not need memory for the float64 experts of all linear layers at once.

    Args:
        trained: Trained model with a routed mixture.
    """
    adapter = trained.model.adapter
    assert adapter is not None
    for target in adapter.targets:
        yield target, fold(adapter, linear_leaves_float64(trained.variables, target))


def check_mixture(trained: TrainedModel | TrainedAdapter, export_format: str) -> AdapterConfig:
    """Check that a trained model is a routed mixture of experts with an update that is not zero.

    Args:
        trained: Trained model.
        export_format: Name of the export format, for messages.

    Returns:
        The adapter's settings.

    Raises:
        UserError: The model is a single LoRA, or its update is zero.
    """
    adapter = trained.model.adapter
    if adapter is None or adapter.structure.is_mergeable:
        raise UserError(
            f'{trained.method} is a single LoRA, not a routed mixture: use --format=peft, merged '
            'or adapter.'
        )
    check_nonzero_update(trained, export_format)
    return adapter


def mixture_block(
    trained: TrainedModel | TrainedAdapter, fingerprint: str | None, router_parts: int
) -> dict[str, Any]:
    """Return the block `mixture` of an exported config, from which other programs build the layers.

    Args:
        trained: Trained model with a routed mixture.
        fingerprint: Fingerprint of the base model's weights, dequantized; None if it is not known.
        router_parts: Number of tensors whose sum is the router's weight.
    """
    adapter = trained.model.adapter
    assert adapter is not None
    return {
        'version': SCHEMA_VERSION,
        'method': trained.method,
        'num_experts': adapter.num_experts,
        'rank': adapter.structure.rank,
        'top_k': adapter.router.top_k,
        'scale': adapter.scale,
        'gates': adapter.router.gates,
        'targets': huggingface_names.target_modules(adapter),
        'router_parts': router_parts,
        'base': {'name': huggingface_names.base_name(trained), 'fingerprint': fingerprint},
    }

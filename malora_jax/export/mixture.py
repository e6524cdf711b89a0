"""Routed mixtures for other programs: dense experts, and a description in JSON."""

from collections.abc import Iterator
from typing import Any

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.d2mora import D2MoRA
from malora_jax.adapters.dense import DenseExperts, fold
from malora_jax.errors import UserError
from malora_jax.export import huggingface_names
from malora_jax.export.merge import check_nonzero_update, linear_leaves_float64
from malora_jax.export.mixture_limits import check_no_second_router, unsupported_part
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel

# Version of the block that `mixture_block` returns.
SCHEMA_VERSION = 1


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
        UserError: The model is a single LoRA, has parameters for each task instead of a router, its
            update is zero, or the format cannot describe it.
    """
    if export_format != 'transformers':
        check_no_second_router(trained, export_format)
    adapter = trained.model.adapter
    if adapter is not None and adapter.tasks:
        raise UserError(
            f'{trained.method} has no router: export the LoRA of one task, with --format=peft, '
            'merged or adapter and --task=NAME.'
        )
    if adapter is None or adapter.structure.is_mergeable:
        raise UserError(
            f'{trained.method} is a single LoRA, not a routed mixture: use --format=peft, merged '
            'or adapter.'
        )
    part = unsupported_part(adapter, trained.method, export_format)
    if part:
        raise UserError(f'--format={export_format} {part}')
    check_nonzero_update(trained, export_format)
    return adapter


def _gates(adapter: AdapterConfig) -> str | dict[str, Any]:
    """Return the kind of gates; with other parts than a softmax router, an object that lists them.

    Readers that know only kinds refuse the object, instead of leaving out a part.
    """
    router, structure = adapter.router, adapter.structure
    num_up_experts = structure.num_up_experts if isinstance(structure, D2MoRA) else 0
    has_more_parts = structure.num_residual_experts or num_up_experts or router.has_offset
    if router.scores == 'softmax' and not has_more_parts:
        return router.gates
    return {
        'kind': router.gates,
        'scores': router.scores,
        'factor': router.gate_factor,
        'has_offset': router.has_offset,
        'offset_in_gates': router.bias_in_gates,
        'num_residual_experts': structure.num_residual_experts,
        'num_up_experts': num_up_experts,
    }


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
    gates = _gates(adapter)
    # A kind alone has no factor for gates that sum to K.
    gate_scale = adapter.router.gate_factor if isinstance(gates, str) else 1
    return {
        'version': SCHEMA_VERSION,
        'method': trained.method,
        'num_experts': adapter.num_experts,
        'rank': adapter.structure.rank,
        'top_k': adapter.router.top_k,
        'scale': adapter.scale * gate_scale,
        'gates': gates,
        'targets': huggingface_names.target_modules(adapter),
        'router_parts': router_parts,
        'base': {'name': huggingface_names.base_name(trained), 'fingerprint': fingerprint},
    }

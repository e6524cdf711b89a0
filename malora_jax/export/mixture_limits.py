"""Mixtures that other programs cannot compute, because their formats have no place for a part."""

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.d2mora import D2MoRA
from malora_jax.errors import UserError
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel


def check_no_second_router(trained: TrainedModel | TrainedAdapter, export_format: str) -> None:
    """Check that the adapter has no second router, which needs a program that knows it.

    Args:
        trained: Trained model.
        export_format: Name of the export format, for the message.

    Raises:
        UserError: The adapter has a second router.
    """
    adapter = trained.model.adapter
    if adapter is not None and isinstance(adapter.structure, D2MoRA):
        raise UserError(
            f'{trained.method} cannot be exported as {export_format}: a second router weights its '
            'up-projections, so its update is no sum over the experts of one router; use '
            '--format=transformers or adapter, or serve the run with experiments.serve.'
        )


def unsupported_part(adapter: AdapterConfig, method: str, export_format: str) -> str:
    """Return which part of a mixture a format does not support.

    Args:
        adapter: Settings of the mixture.
        method: Name of the method.
        export_format: Name of the export format, 'transformers', 'vllm' or 'static'.

    Returns:
        The rest of a sentence that begins with the format; '' if the format supports all parts.
    """
    if export_format == 'static':
        return ''
    if adapter.experts_per_layer:
        return (
            'needs the same number of experts in every layer: adapter.experts_per_layer must be ().'
        )
    if export_format == 'transformers':
        return ''
    if adapter.router.scores != 'softmax' or adapter.router.bias_rate > 0:
        return (
            "needs the gates of a softmax without a bias: adapter.scores must be 'softmax', and "
            'adapter.bias_rate 0. Use --format=transformers, static or adapter.'
        )
    if adapter.structure.num_residual_experts:
        return (
            f'has no place for the frozen residual of {method}, which every token uses: use '
            '--format=transformers, static or adapter.'
        )
    return ''

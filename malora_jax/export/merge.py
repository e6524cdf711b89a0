"""Updates that are the same for every token, put into the base's weights.

Dimension letters: L layers, D inputs and F outputs of a linear, R rank.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters import AdapterConfig, compute
from malora_jax.errors import UserError
from malora_jax.training.restore import Restored

_PARTS = {'q': 'attention', 'k': 'attention', 'v': 'attention', 'o': 'attention'}


def check_static(trained: Restored, what: str) -> AdapterConfig:
    """The adapter's settings, if its update is W + s · B A, with DoRA's magnitude perhaps.

    Args:
        trained: the model.
        what: is to be made of it, for the message.

    Raises:
        UserError: it is routed, so that its update differs from token to token; or it was not
            trained, so that nothing would change.
    """
    adapter = trained.model.adapter
    if adapter is None or adapter.has_router or adapter.shared_rank:
        raise UserError(
            f'{trained.method} cannot be exported as {what}: its experts are chosen token by '
            "token; use --format=adapter, or train 'lora', 'dora' or 'asylora'."
        )
    if trained.step == 0 or not any(np.any(up) for up in _leaves_named(trained, 'up')):
        raise UserError(
            f'The run has made {trained.step} steps and its update is zero: an export as {what} '
            'would change nothing.'
        )
    return adapter


def merged_params(trained: Restored) -> Any:
    """The base's `params` with the update in them, in its dtype.

    Raises:
        UserError: as `check_static`.
    """
    adapter = check_static(trained, 'merged')
    layers = dict(trained.base.params['layers'])
    for target in adapter.targets:
        part = part_of(target)
        leaves = linear_leaves(trained, target)
        kernel_LDF = layers[part][target]['kernel']
        new = jax.vmap(lambda k, leaves: _merge(adapter, k, leaves))(kernel_LDF, leaves)
        linear = layers[part][target] | {'kernel': new.astype(kernel_LDF.dtype)}
        layers[part] = layers[part] | {target: linear}
    return trained.base.params | {'layers': layers}


def linear_leaves(trained: Restored, target: str) -> dict[str, jax.Array]:
    """The adapter's leaves of one linear in all layers, whichever collection they are in."""
    found: dict[str, jax.Array] = {}
    for name in ('adapter', 'adapter_frozen'):
        tree = trained.variables.get(name, {}).get('layers', {})
        found |= tree.get(part_of(target), {}).get(target, {})
    return found


def part_of(target: str) -> str:
    """The module that a linear is in."""
    return _PARTS.get(target, 'mlp')


def _merge(adapter: AdapterConfig, kernel_DF: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
    kernel_DF = kernel_DF.astype(jnp.float32)
    down_DR, up_RF = leaves['down'][0], leaves['up'][0]
    merged_DF = kernel_DF + adapter.scale * (down_DR @ up_RF)
    if not adapter.magnitude:
        return merged_DF
    lengths_F = compute.column_lengths(kernel_DF, down_DR, up_RF, adapter.scale)
    return merged_DF * (leaves['magnitude'] / lengths_F)[None]


def _leaves_named(trained: Restored, name: str) -> list[jax.Array]:
    adapter = trained.model.adapter
    return [linear_leaves(trained, target)[name] for target in (adapter.targets if adapter else ())]

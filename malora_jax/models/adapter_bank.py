"""Decoder with a bank of adapters, made from trained adapters of one base model.

Dimension letters: L layers, A adapters, D inputs and F outputs of a linear layer, E experts and R
rank of an adapter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax.adapters.bank import COLLECTION, GROUP_PREFIX, AdapterBank
from malora_jax.adapters.dense import fold
from malora_jax.adapters.magnitude import multipliers
from malora_jax.adapters.trees import ADAPTER_COLLECTIONS, linear_leaves
from malora_jax.distributed import sharding
from malora_jax.models.decoder import Decoder, abstract_variables
from malora_jax.models.quantize import QuantizedKernel


def bank_adapters(models: Sequence[tuple[Decoder, Any]]) -> tuple[Decoder, Any]:
    """Combine decoders that differ only in their adapters into one decoder with a bank.

    Args:
        models: Decoders with an adapter, each with its variables. The base model's are those of
            the first.

    Returns:
        The decoder with a bank of the adapters, in the same order; and its variables.
    """
    first, variables = models[0]
    bank = AdapterBank(tuple(model.adapter for model, _ in models if model.adapter is not None))
    model = Decoder(first.config, attention=first.attention, bank=bank)
    params = variables['params']
    adapters = [{name: own.get(name, {}) for name in ADAPTER_COLLECTIONS} for _, own in models]
    boxed = abstract_variables(model)[COLLECTION]
    folded = jax.jit(_fold_all, static_argnums=0, out_shardings=sharding.shardings(boxed))
    return model, {'params': params, COLLECTION: folded(model, params, adapters)}


def _fold_all(model: Decoder, params: Any, adapters: Sequence[Mapping[str, Any]]) -> Any:
    """Return collection `bank` of a decoder, from the collections of each adapter."""
    shapes = nn.unbox(abstract_variables(model))[COLLECTION]['layers']
    with jax.default_matmul_precision('highest'):
        return {
            'layers': {
                part: {
                    group: _fold_group(model, params['layers'][part], adapters, part, group)
                    for group in groups
                }
                for part, groups in shapes.items()
            }
        }


def _fold_group(
    model: Decoder, params: Any, adapters: Sequence[Mapping[str, Any]], part: str, group: str
) -> dict[str, jax.Array]:
    """Return the parameters of the module `BankedExperts` of linear layers with a common input.

    Args:
        model: Decoder with the bank.
        params: Parameters of the base model in this part of each layer.
        adapters: Collections of each adapter.
        part: Name of the part, 'attention' or 'mlp'.
        group: Name of the module: a prefix and the names of its linear layers, with underscores.
    """
    bank, dtype = model.bank, model.config.dtype
    assert bank is not None
    names = group.removeprefix(GROUP_PREFIX).split('_')
    leaves = {
        (index, name): linear_leaves(collections, name)
        for index, collections in enumerate(adapters)
        for name in names
        if index in bank.indices(name)
    }
    experts = {key: fold(bank.adapters[key[0]], own) for key, own in leaves.items()}
    routers = [own.router for key, own in experts.items() if bank.adapters[key[0]].has_router]
    found = {
        'down': jnp.concatenate(
            [own.stacked_down().swapaxes(1, 2) for own in experts.values()], axis=2
        ).astype(dtype)
    }
    if routers:
        found['router'] = jnp.concatenate(routers, axis=2)
    if bank.has_router_offset:
        found['offset'] = jnp.concatenate(
            [
                jnp.zeros_like(own.router[:, 0]) if own.router_offset is None else own.router_offset
                for key, own in experts.items()
                if bank.adapters[key[0]].has_router
            ],
            axis=1,
        )
    if bank.has_experts_per_layer:
        counts = [each.layer_experts(model.config.num_layers) for each in bank.adapters]
        found['experts'] = jnp.stack(counts, axis=1)
    for (index, name), own in experts.items():
        if own.up_router is not None:
            found[f'up_router_{name}_{index}'] = own.up_router
    for name in names:
        found[f'up_{name}'] = jnp.concatenate(
            [
                bank.adapters[index].scale * experts[index, name].stacked_up().swapaxes(1, 2)
                for index in bank.indices(name)
            ],
            axis=1,
        ).astype(dtype)
        if bank.has_magnitude(name):
            kernel_LDF = _dequantized(model, params[name])
            found[f'factor_{name}'] = jnp.stack(
                [
                    multipliers(adapter, kernel_LDF, leaves.get((index, name), {}))
                    for index, adapter in enumerate([*bank.adapters, None])
                ],
                axis=1,
            )
    return found


def _dequantized(model: Decoder, linear: Mapping[str, jax.Array]) -> jax.Array:
    """Return the kernel of a linear layer in all layers, (L, D, F)."""
    if not model.config.quantize:
        return linear['kernel']
    codes, scale = linear['kernel'], linear['kernel_scale']
    return jax.vmap(QuantizedKernel.dequantize)(
        QuantizedKernel(codes, scale, model.config.quantize)
    )

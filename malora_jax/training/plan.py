"""Cost estimate of a run before it starts: parameters, floating-point operations and memory.

All numbers are computed from shapes by abstract evaluation; nothing is allocated.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from malora_jax.adapters import AdapterConfig, trees
from malora_jax.adapters.base_structure import Axis
from malora_jax.adapters.settings import settings_of
from malora_jax.adapters.structures import DoRA
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import RunConfig


def count_model_parameters(model: Decoder) -> dict[str, Any]:
    """Return the parameter counts of a model that is not allocated.

    Args:
        model: Decoder, with or without an adapter.

    Returns:
        The same keys as `count_parameters`.
    """
    variables = _unquantized(model)
    adapter, frozen = variables.get('adapter', {}), variables.get('adapter_frozen', {})
    return count_parameters(model, adapter, frozen)


def count_parameters(model: Decoder, adapter: Any, frozen: Any) -> dict[str, Any]:
    """Return the parameter counts of a base model and an adapter.

    A quantized kernel counts with the number of parameters that it had before quantization. If
    layers have different numbers of experts, only the experts that a router can choose count.

    Args:
        model: Decoder, with or without an adapter.
        adapter: Trainable leaves of the adapter, as unboxed arrays or shapes.
        frozen: Frozen leaves of the adapter, as unboxed arrays or shapes.

    Returns:
        `base`, `trainable` and `frozen_in_adapter`, numbers of scalars; `percent_of_base` and
        `percent_of_all`, the trainable parameters in percent of the base model and in percent of
        base model and adapter together; `by_group`, the number of scalars in the adapter by name
        of the leaf.
    """
    base = trees.count(_unquantized(Decoder(model.config))['params'])
    trained, frozen_counts = (_count_by_name(model, tree) for tree in (adapter, frozen))
    trainable, fixed = sum(trained.values()), sum(frozen_counts.values())
    return {
        'base': base,
        'trainable': trainable,
        'frozen_in_adapter': fixed,
        'percent_of_base': round(100 * trainable / base, 3),
        'percent_of_all': round(100 * trainable / (base + trainable + fixed), 3),
        'by_group': dict(sorted((trained | frozen_counts).items())),
    }


def _count_by_name(model: Decoder, tree: Any) -> dict[str, int]:
    """Return the number of scalars by name of the leaf, of experts that a router can choose."""
    counts = trees.count_by_name(tree)
    if model.adapter is None:
        return counts
    one, num_experts = Axis('', 1), model.adapter.num_experts
    experts_L = model.adapter.layer_experts(model.config.num_layers)
    for name, axes in model.adapter.axes(one, one).items():
        if name in counts and any(axis.name == 'expert' for axis in axes):
            # The leaf has equally many scalars for each expert of each layer.
            counts[name] = counts[name] // (len(experts_L) * num_experts) * int(experts_L.sum())
    return counts


def flops_per_token(model: Decoder, sequence_length: int, batch_size: int) -> dict[str, int]:
    """Return the floating-point operations (FLOPs) per training token; a multiply-add counts as 2.

    The frozen base model needs the forward pass and the gradient with respect to activations, about
    4 operations per parameter.

    In the adapter, each token is multiplied with the router and with the matrices of all experts.
    These products are counted in the forward pass, in the gradient with respect to the input, and
    in the gradient with respect to the weights. Frozen leaves need no gradient with respect to the
    weights, but they need the one with respect to the input, because earlier layers train. With
    token dispatch, each token is multiplied only with the experts that the router chose for it.
    Dispatch also pads the tokens of each expert. The padding is not counted, so the number is then
    a lower bound.

    If the routers sample experts, every part is computed once for each sample.

    Attention is causal and is counted over half of a full row. The output head is counted for every
    token, although it is computed only for tokens that carry loss. DoRA's column lengths depend
    only on the weights. They are computed once in the forward pass of each batch, without a
    gradient, and their cost is divided by the number of tokens of the batch. Elementwise operations
    (norms, activations, softmax, DoRA's magnitude) and rematerialization (`training.remat`) are not
    counted.

    Args:
        model: Decoder, with or without an adapter.
        sequence_length: T, the tokens of a row.
        batch_size: B, the number of rows that are computed together.

    Returns:
        `base_forward`, `base_backward`, `attention_forward`, `attention_backward`,
        `adapter_forward`, `adapter_backward`, `column_lengths` and their sum `total`.
    """
    variables, config = _unquantized(model), model.config
    linear_parameters = sum(
        math.prod(leaf.shape)
        for path, leaf in trees.named_leaves(variables['params'])
        if path.endswith('kernel')
    )
    base = 2 * (linear_parameters + config.width * config.vocab_size)
    heads = config.num_heads * config.head_width
    # Attention scores and weighted values: two products of (T / 2) · H · C multiply-adds per layer,
    # with H heads of width C.
    attention = 2 * 2 * config.num_layers * heads * sequence_length // 2
    trained = _multiplied_parameters(variables.get('adapter', {}), model.adapter)
    adapter = trained + _multiplied_parameters(variables.get('adapter_frozen', {}), model.adapter)
    parts = {
        'base_forward': base,
        'base_backward': base,
        'attention_forward': attention,
        'attention_backward': 2 * attention,
        'adapter_forward': 2 * adapter,
        'adapter_backward': 2 * (adapter + trained),
        'column_lengths': _column_length_flops(variables['params'], model.adapter)
        // (sequence_length * batch_size),
    }
    if model.adapter is not None and model.adapter.router.samples > 0:
        parts = {name: model.adapter.router.samples * part for name, part in parts.items()}
    return parts | {'total': sum(parts.values())}


def _multiplied_parameters(tree: Any, adapter: AdapterConfig | None) -> int:
    """Return the number of adapter parameters that each token is multiplied with."""
    if adapter is None:
        return 0
    structure = adapter.structure
    # Vectors, such as a magnitude or a bias, are added or multiplied to few numbers of a token.
    matrices = {name: leaf for name, leaf in trees.named_leaves(tree) if leaf.ndim > 2}
    counts = trees.count_by_name(matrices)
    if adapter.dispatch:
        for name in counts.keys() & {*structure.dispatch_factors}:
            counts[name] = counts[name] * adapter.router.top_k // adapter.num_experts
    for name in counts.keys() & {*structure.summed_factors}:
        counts[name] //= adapter.num_experts
    return sum(counts.values())


def _column_length_flops(params: Any, adapter: AdapterConfig | None) -> int:
    """Return the FLOPs that DoRA needs to compute the column lengths (norms) of the weights.

    This is the sum over all adapted linears; 0 without DoRA.
    """
    if adapter is None or not isinstance(adapter.structure, DoRA):
        return 0
    total = 0
    for path, leaf in trees.named_leaves(params):
        linear, _, name = path.rpartition('/')
        if name == 'kernel' and linear.rpartition('/')[-1] in adapter.targets:
            layers, inputs, outputs = leaf.shape
            total += layers * adapter.structure.column_norm_flops(inputs, outputs)
    return total


def memory_bytes(model: Decoder) -> dict[str, int]:
    """Return the memory of training on one device without activations, in bytes.

    Gradient accumulation (`training.accumulate`) and rematerialization (`training.remat`) reduce
    the memory of activations. Frozen leaves have neither gradients nor moments.

    Args:
        model: Decoder, with or without an adapter.

    Returns:
        `base`, `adapter`, `gradients`, `optimizer` (two moments) and their sum `total`.
    """
    variables = nn.unbox(abstract_variables(model))
    adapter = tree_bytes(variables.get('adapter', {}))
    parts = {
        'base': tree_bytes(variables['params']),
        'adapter': adapter + tree_bytes(variables.get('adapter_frozen', {})),
        'gradients': adapter,
        'optimizer': 2 * adapter,
    }
    return parts | {'total': sum(parts.values())}


def plan(run: RunConfig) -> dict[str, Any]:
    """Return the cost estimate of a run, which `experiments.plan` prints as JSON."""
    model = Decoder(run.model, run.adapter)
    sequence_length, batch_size = run.data.sequence_length, run.data.batch_size
    return {
        'model': run.model.name,
        'method': run.method,
        'adapter': dataclasses.asdict(settings_of(run.adapter)),
        'parameters': count_model_parameters(model),
        'flops_per_token': flops_per_token(model, sequence_length, batch_size),
        'memory_bytes': memory_bytes(model),
        'tokens_per_step': sequence_length * batch_size * run.training.accumulate,
    }


def tree_bytes(tree: Any) -> int:
    """Return the size of a tree of arrays or shapes in bytes; a random key counts as 8 bytes."""
    return sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _itemsize(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _unquantized(model: Decoder) -> Any:
    """Return the shapes of the decoder's collections as if its kernels were not quantized."""
    config = dataclasses.replace(model.config, quantize='')
    return nn.unbox(abstract_variables(model.clone(config=config)))

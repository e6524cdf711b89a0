"""What a run costs, before it runs: parameters, floating-point operations, memory.

Everything comes from shapes by abstract evaluation; nothing is allocated.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from malora_jax.adapters import AdapterConfig, trees
from malora_jax.adapters.methods import settings_of
from malora_jax.adapters.structures import DoRA
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import RunConfig


def parameter_counts(model: Decoder) -> dict[str, Any]:
    """Parameters of a model that need not exist yet, as `count_parameters` does."""
    variables = _unquantized(model)
    adapter, frozen = variables.get('adapter', {}), variables.get('adapter_frozen', {})
    return count_parameters(model.config, adapter, frozen)


def count_parameters(config: ModelConfig, adapter: Any, frozen: Any) -> dict[str, Any]:
    """Parameters of base and adapter; a quantised kernel has those that it stands for.

    Args:
        config: the base.
        adapter: the adapter's trained leaves, as arrays or their shapes, without boxes.
        frozen: its leaves that do not train.

    Returns:
        `base`, `trainable`, `frozen_in_adapter` (scalars), `percent_of_base` and `percent_of_all`
        (trainable ones as a share of the base, and of base and adapter together), `by_group`
        (scalars in the adapter by kind of leaf).
    """
    base = trees.count(_unquantized(Decoder(config))['params'])
    trainable, fixed = trees.count(adapter), trees.count(frozen)
    return {
        'base': base,
        'trainable': trainable,
        'frozen_in_adapter': fixed,
        'percent_of_base': round(100 * trainable / base, 3),
        'percent_of_all': round(100 * trainable / (base + trainable + fixed), 3),
        'by_group': trees.count_by_name([adapter, frozen]),
    }


def flops_per_token(model: Decoder, sequence_length: int, batch_size: int) -> dict[str, int]:
    """Floating-point operations of one token of training, a multiply-add counting as two.

    The frozen base costs the forward pass and the gradient with respect to activations, about 4 per
    parameter. In the adapter every factor and router, stacked over the experts, meets a token once:
    forward, for the gradient with respect to its input (a frozen one's too, as earlier layers
    train), and if it trains for its own gradient. Attention is counted over half of a full row, as
    it is causal; elementwise work (norms, activations, the softmax, DoRA's magnitude) is not
    counted, nor what `training.remat` computes again. The head counts for every token, although it
    runs only where there is loss.

    DoRA's column lengths depend on weights alone: they are computed in the forward pass of each
    batch, without a gradient, and divided over its tokens. With dispatch a token meets its K
    experts alone; that is the least, as the padding of groups is not counted.

    Args:
        model: the decoder.
        sequence_length: T.
        batch_size: B, rows that are computed together.

    Returns:
        `base_forward`, `base_backward`, `attention_forward`, `attention_backward`,
        `adapter_forward`, `adapter_backward`, `column_lengths`, `total`.
    """
    variables, config = _unquantized(model), model.config
    linears = sum(
        math.prod(leaf.shape)
        for path, leaf in trees.named_leaves(variables['params'])
        if path.endswith('kernel')
    )
    base = 2 * (linears + config.width * config.vocab_size)
    heads = config.num_heads * config.head_width
    # Scores and weighted values: two products of (T / 2) · H · C multiply-adds a layer.
    attention = 2 * 2 * config.num_layers * heads * sequence_length // 2
    trained = _multiplied(variables.get('adapter', {}), model.adapter)
    adapter = trained + _multiplied(variables.get('adapter_frozen', {}), model.adapter)
    parts = {
        'base_forward': base,
        'base_backward': base,
        'attention_forward': attention,
        'attention_backward': 2 * attention,
        'adapter_forward': 2 * adapter,
        'adapter_backward': 2 * (adapter + trained),
        'column_lengths': _column_lengths(variables['params'], model.adapter)
        // (sequence_length * batch_size),
    }
    return parts | {'total': sum(parts.values())}


def _multiplied(tree: Any, adapter: AdapterConfig | None) -> int:
    """Count the scalars of the matrices that each token is multiplied with."""
    if adapter is None:
        return 0
    structure, counts = adapter.structure, trees.count_by_name(tree)
    if adapter.dispatch:
        for name in counts.keys() & {*structure.dispatched}:
            counts[name] = counts[name] * adapter.router.top_k // adapter.num_experts
    return sum(count for name, count in counts.items() if name not in structure.extra)


def _column_lengths(params: Any, adapter: AdapterConfig | None) -> int:
    """Count the operations of the column lengths of all adapted linears, with DoRA."""
    if adapter is None or not isinstance(adapter.structure, DoRA):
        return 0
    total = 0
    for path, leaf in trees.named_leaves(params):
        linear, _, name = path.rpartition('/')
        if name == 'kernel' and linear.rpartition('/')[-1] in adapter.targets:
            layers, inputs, outputs = leaf.shape
            total += layers * adapter.structure.length_operations(inputs, outputs)
    return total


def memory_bytes(model: Decoder) -> dict[str, int]:
    """Bytes that stay allocated in training, on one device.

    Without activations, which `training.accumulate` and `training.remat` are for. A leaf that does
    not train has neither gradient nor moments.

    Returns:
        `base`, `adapter`, `gradients` and `optimizer` (two moments), `total`.
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
    """The plan of a run, as `experiments.plan` prints it."""
    model = Decoder(run.model, run.adapter)
    sequence_length, batch_size = run.data.sequence_length, run.data.batch_size
    return {
        'model': run.model.name,
        'method': run.method,
        'adapter': dataclasses.asdict(settings_of(run.adapter)),
        'parameters': parameter_counts(model),
        'flops_per_token': flops_per_token(model, sequence_length, batch_size),
        'memory_bytes': memory_bytes(model),
        'tokens_per_step': sequence_length * batch_size * run.training.accumulate,
    }


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes; keys of random numbers count as eight."""
    return sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _itemsize(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _unquantized(model: Decoder) -> Any:
    """Shapes of the decoder's collections, with kernels as they are before they are quantised."""
    config = dataclasses.replace(model.config, quantize='')
    return nn.unbox(abstract_variables(model.clone(config=config)))

"""What a run costs, before it runs: parameters, floating-point operations, memory.

Everything comes from shapes by abstract evaluation; nothing is allocated.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from malora_jax.adapters import trees
from malora_jax.models import Decoder
from malora_jax.training.config import RunConfig
from malora_jax.training.state import abstract_variables


def parameter_counts(model: Decoder) -> dict[str, Any]:
    """Parameters of base and adapter.

    Returns:
        `base`, `trainable`, `frozen_in_adapter` (scalars), `percent_of_base` and `percent_of_all`
        (trainable ones as a share of the base, and of base and adapter together), `by_group`
        (scalars in the adapter by kind of leaf).
    """
    variables = nn.unbox(abstract_variables(model))
    adapter, frozen = variables.get('adapter', {}), variables.get('adapter_frozen', {})
    base = trees.count(variables['params'])
    trainable, fixed = trees.count(adapter), trees.count(frozen)
    return {
        'base': base,
        'trainable': trainable,
        'frozen_in_adapter': fixed,
        'percent_of_base': round(100 * trainable / base, 3),
        'percent_of_all': round(100 * trainable / (base + trainable + fixed), 3),
        'by_group': trees.count_by_name([adapter, frozen]),
    }


def flops_per_token(model: Decoder, sequence_length: int) -> dict[str, int]:
    """Floating-point operations of one token of training, a multiply-add counting as two.

    The frozen base costs the forward pass and the gradient with respect to activations, about 4 per
    parameter; only the adapter has weight gradients. Attention is counted over half of a full
    row, as it is causal; norms, activations and the softmax are not counted. The head counts for
    every token, although it runs only where there is loss.

    Returns:
        `base_forward`, `base_backward`, `attention_forward`, `attention_backward`,
        `adapter_forward`, `adapter_backward`, `total`.
    """
    variables = nn.unbox(abstract_variables(model))
    config = model.config
    linears = sum(
        math.prod(leaf.shape)
        for path, leaf in trees.named_leaves(variables['params'])
        if path.endswith('kernel')
    )
    base = 2 * (linears + config.width * config.vocab_size)
    heads = config.num_heads * config.head_width
    # Scores and weighted values: two products of (T / 2) · H · C multiply-adds a layer.
    attention = 2 * 2 * config.num_layers * heads * sequence_length // 2
    # In rank space a token meets every scalar of the adapter once.
    adapter = 2 * trees.count([variables.get('adapter', {}), variables.get('adapter_frozen', {})])
    trained = 2 * trees.count(variables.get('adapter', {}))
    parts = {
        'base_forward': base,
        'base_backward': base,
        'attention_forward': attention,
        'attention_backward': 2 * attention,
        'adapter_forward': adapter,
        'adapter_backward': adapter + trained,
    }
    return parts | {'total': sum(parts.values())}


def memory_bytes(model: Decoder) -> dict[str, int]:
    """Bytes that stay allocated in training, on one device, without activations.

    Returns:
        `base`, `adapter`, `gradients` and `optimizer` (two moments), `total`.
    """
    variables = nn.unbox(abstract_variables(model))
    adapter = _bytes(variables.get('adapter', {}))
    parts = {
        'base': _bytes(variables['params']),
        'adapter': adapter + _bytes(variables.get('adapter_frozen', {})),
        'gradients': adapter,
        'optimizer': 2 * adapter,
    }
    return parts | {'total': sum(parts.values())}


def plan(run: RunConfig) -> dict[str, Any]:
    """The plan of a run, as `experiments.plan` prints it."""
    model = Decoder(run.model, run.adapter)
    return {
        'model': run.model.name,
        'method': run.method,
        'adapter': dataclasses.asdict(run.adapter),
        'parameters': parameter_counts(model),
        'flops_per_token': flops_per_token(model, run.data.sequence_length),
        'memory_bytes': memory_bytes(model),
        'tokens_per_step': run.data.sequence_length * run.data.batch_size,
    }


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

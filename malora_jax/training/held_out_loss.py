"""Evaluation on packed batches: the loss of each task, and statistics of the routing.

The loss is the mean cross-entropy of the answer tokens, which is the log of the perplexity.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from malora_jax.distributed import sharding
from malora_jax.models import Decoder
from malora_jax.training.step import Batch, Losses, losses


def held_out_losses(
    model: Decoder, variables: Any, batches: Iterable[Batch], num_tasks: int
) -> Losses:
    """Sum the losses and routing statistics over batches, without dropout.

    Args:
        model: Decoder with its adapter.
        variables: Flax collections of the decoder.
        batches: Packed batches, at least one.
        num_tasks: Number of tasks, G.

    Returns:
        The sums of `step.losses` over all batches, as NumPy arrays.
    """
    total: Any = None
    for batch in batches:
        part = jax.tree.map(np.asarray, _one_batch(model, variables, batch, num_tasks))
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total


def loss_by_task(sums: Losses) -> np.ndarray:
    """Return the mean loss of each task, in nats per answer token.

    Args:
        sums: Summed losses, as `held_out_losses` returns them.

    Returns:
        (G,) float; NaN for a task without answer tokens.
    """
    tokens_G = np.asarray(sums.loss_tokens)
    return np.divide(sums.nll, tokens_G, out=np.full(tokens_G.shape, np.nan), where=tokens_G > 0)


# At module level, so that repeated evaluations of one model share one compilation.
@functools.partial(jax.jit, static_argnames=('model', 'num_tasks'))
def _one_batch(model: Decoder, variables: Any, batch: Batch, num_tasks: int) -> Losses:
    return sharding.replicate(losses(model, variables, batch, num_tasks))

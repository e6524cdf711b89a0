"""What the model does on kept examples without an update: answer loss and routing."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from malora_jax.distributed import rules
from malora_jax.models import Decoder
from malora_jax.training.step import Batch, Losses, losses


def held_out_losses(
    model: Decoder, variables: Any, batches: Iterable[Batch], num_tasks: int
) -> Losses:
    """Sums of `losses` over batches, dropout off, on the host.

    Args:
        model: the decoder.
        variables: its collections.
        batches: packed batches; at least one.
        num_tasks: G.
    """
    total: Any = None
    for batch in batches:
        part = jax.tree.map(np.asarray, _one_batch(model, variables, batch, num_tasks))
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total


def loss_by_task(sums: Losses) -> np.ndarray:
    """(G,): nats per token that carries loss, of each task; nan for a task without any."""
    tokens_G = np.asarray(sums.loss_tokens)
    return np.divide(sums.nll, tokens_G, out=np.full(tokens_G.shape, np.nan), where=tokens_G > 0)


# Compiled once for a model, however often it is evaluated.
@functools.partial(jax.jit, static_argnames=('model', 'num_tasks'))
def _one_batch(model: Decoder, variables: Any, batch: Batch, num_tasks: int) -> Losses:
    return rules.replicate(losses(model, variables, batch, num_tasks))

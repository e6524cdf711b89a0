"""What the model does on held-out examples without an update: answer loss and routing."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from malora_jax.models import Decoder
from malora_jax.training.step import Batch, Losses, losses


def held_out_losses(
    model: Decoder, variables: Any, batches: Iterator[Batch], num_tasks: int
) -> Losses:
    """Sums of `losses` over batches, dropout off, on the host.

    Args:
        model: the decoder.
        variables: its collections.
        batches: packed batches; at least one.
        num_tasks: G.
    """
    one_batch = jax.jit(lambda variables, batch: losses(model, variables, batch, num_tasks))
    total: Any = None
    for batch in batches:
        part = jax.tree.map(np.asarray, one_batch(variables, batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total

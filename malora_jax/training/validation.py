"""Choosing a checkpoint: the loss on examples that are neither trained on nor scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.training.heldout import held_out_losses, loss_by_task
from malora_jax.training.setup import Setup

LOSS = 'validation_loss'


class Validation:
    """The validation loss of a run's model.

    Its examples are apart from the held-out ones, so that a score on these is honest although the
    checkpoint was chosen.
    """

    def __init__(self, setup: Setup):
        """Packs the examples, once."""
        self._setup = setup
        self._batches = list(setup.validation_batches())

    def __call__(self, variables: Any) -> dict[str, float]:
        """The mean over tasks and the loss of each task, as fields of a step's record.

        Args:
            variables: the adapted model's collections.
        """
        splits = self._setup.splits
        sums = held_out_losses(self._setup.model, variables, self._batches, len(splits))
        loss_G = loss_by_task(sums)
        by_task = {
            f'{LOSS}/{split.task_name}': float(loss)
            for split, loss in zip(splits, loss_G, strict=True)
            if split.validation
        }
        return {LOSS: float(np.nanmean(loss_G)), **by_task}


def evaluations_without_progress(records: Sequence[Mapping[str, Any]]) -> int:
    """How many evaluations there were since the one with the lowest loss."""
    losses = [record[LOSS] for record in records if LOSS in record]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def curve(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each evaluation's `step`, `loss` and `by_task`."""
    return [
        {
            'step': record['step'],
            'loss': record[LOSS],
            'by_task': {
                name.split('/', 1)[1]: value
                for name, value in record.items()
                if name.startswith(f'{LOSS}/')
            },
        }
        for record in records
        if LOSS in record
    ]

"""Validation loss, which chooses the best checkpoint and is the criterion of early stopping."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.training.held_out_loss import held_out_losses, loss_by_task
from malora_jax.training.setup import Setup

VALIDATION_LOSS = 'validation_loss'


class ValidationLoss:
    """Function that computes the validation loss of a run's adapted model.

    The validation examples are neither trained on nor scored. Choosing a checkpoint by this loss
    therefore does not bias its scores on the held-out examples.
    """

    def __init__(self, setup: Setup):
        """Pack the validation examples once, for all evaluations."""
        self._setup = setup
        self._batches = list(setup.validation_batches())

    def __call__(self, variables: Any) -> dict[str, float]:
        """Return the validation loss, mean over tasks and per task, in nats per answer token.

        Args:
            variables: Collections of the adapted model.

        Returns:
            Fields of the record of a step: `validation_loss` and `validation_loss/TASK`.
        """
        splits = self._setup.splits
        sums = held_out_losses(self._setup.model, variables, self._batches, len(splits))
        loss_G = loss_by_task(sums)
        by_task = {
            f'{VALIDATION_LOSS}/{split.task_name}': float(loss)
            for split, loss in zip(splits, loss_G, strict=True)
            if split.validation
        }
        return {VALIDATION_LOSS: float(np.nanmean(loss_G)), **by_task}


def evaluations_without_progress(records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of evaluations since the lowest validation loss, for early stopping.

    If several evaluations have the lowest loss, the first of them counts.

    Args:
        records: Records of `metrics.jsonl`.
    """
    losses = [record[VALIDATION_LOSS] for record in records if VALIDATION_LOSS in record]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def validation_curve(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the validation curve: `step`, `loss` and `by_task` of each evaluation.

    Args:
        records: Records of `metrics.jsonl`.
    """
    return [
        {
            'step': record['step'],
            'loss': record[VALIDATION_LOSS],
            'by_task': {
                name.split('/', 1)[1]: value
                for name, value in record.items()
                if name.startswith(f'{VALIDATION_LOSS}/')
            },
        }
        for record in records
        if VALIDATION_LOSS in record
    ]

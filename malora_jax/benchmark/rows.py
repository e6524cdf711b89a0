"""Batches to measure with: full rows of random tokens, or the packed rows of a run's tasks.

Dimension letters: B rows, T positions.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from malora_jax.training.config import RunConfig
from malora_jax.training.setup import Setup
from malora_jax.training.step import Batch

# Tasks that the tokens of random rows belong to.
SYNTHETIC_TASKS = 4


def synthetic(run: RunConfig, count: int) -> list[Batch]:
    """Full rows: each is one text of random tokens, which all carry loss, and of one task.

    Args:
        run: whose seed, vocabulary and batch size they have.
        count: how many batches.
    """
    shape = (run.data.batch_size * run.training.accumulate, run.data.sequence_length)
    rng = np.random.default_rng(run.seed)
    batches: list[Batch] = []
    for _ in range(count):
        tokens_BT = rng.integers(run.model.vocab_size, size=(shape[0], shape[1] + 1))
        task_B1 = np.arange(shape[0])[:, None] % SYNTHETIC_TASKS
        batches.append(
            {
                'inputs': tokens_BT[:, :-1].astype(np.int32),
                'targets': tokens_BT[:, 1:].astype(np.int32),
                'loss_mask': np.ones(shape, np.float32),
                'task_ids': np.broadcast_to(task_B1, shape).astype(np.int32),
                'segment_ids': np.ones(shape, np.int32),
                'positions': np.broadcast_to(np.arange(shape[1]), shape).astype(np.int32),
            }
        )
    return batches


def packed(setup: Setup, count: int) -> list[Batch]:
    """The first batches that the run would train on."""
    return list(itertools.islice(setup.train_iterator(), count))


def real_tokens(batches: Sequence[Batch]) -> float:
    """Tokens of a batch that are not padding, on average."""
    return float(np.mean([(batch['segment_ids'] > 0).sum() for batch in batches]))


def loss_tokens(batches: Sequence[Batch]) -> float:
    """Tokens of a batch that carry loss, on average."""
    return float(np.mean([batch['loss_mask'].sum() for batch in batches]))

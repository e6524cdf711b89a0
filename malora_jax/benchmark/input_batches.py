"""Batches for benchmarks: full rows of random tokens, or the packed rows of a run's tasks.

Dimension letters: B rows, T positions.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from malora_jax.training.config import RunConfig
from malora_jax.training.setup import Setup
from malora_jax.training.step import Batch

# Names of the tasks in batches of random tokens.
SYNTHETIC_TASKS = ('first', 'second', 'third', 'fourth')


def synthetic_batches(run: RunConfig, count: int) -> list[Batch]:
    """Return batches of random tokens without padding.

    Each row is a single example of one task, and all of its tokens contribute to the loss.

    Args:
        run: Run config; only the seed, the vocabulary size and the batch shape are used.
        count: Number of batches.
    """
    shape = (run.data.batch_size * run.training.accumulate, run.data.sequence_length)
    rng = np.random.default_rng(run.seed)
    batches: list[Batch] = []
    for _ in range(count):
        tokens_BT = rng.integers(run.model.vocab_size, size=(shape[0], shape[1] + 1))
        task_B1 = np.arange(shape[0])[:, None] % len(SYNTHETIC_TASKS)
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


def packed_batches(setup: Setup, count: int) -> list[Batch]:
    """Return the first training batches of a run.

    Args:
        setup: Components of the run, from `build_setup`.
        count: Number of batches.
    """
    return list(itertools.islice(setup.train_iterator(), count))


def real_tokens(batches: Sequence[Batch]) -> float:
    """Return the mean number of tokens per batch that are not padding."""
    return float(np.mean([(batch['segment_ids'] > 0).sum() for batch in batches]))


def loss_tokens(batches: Sequence[Batch]) -> float:
    """Return the mean number of tokens per batch that contribute to the loss."""
    return float(np.mean([batch['loss_mask'].sum() for batch in batches]))

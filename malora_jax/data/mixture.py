"""The training mixture: tasks shuffled, repeated, mixed by weight, packed and batched."""

from collections.abc import Sequence

import grain

from malora_jax.data.fitting import encode_examples
from malora_jax.data.packing import IN_MEMORY, pack
from malora_jax.data.seeds import stable_seed
from malora_jax.data.splits import Split
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError


def train_iterator(
    splits: Sequence[Split],
    tokenizer: Tokenizer,
    template: Template,
    *,
    sequence_length: int,
    batch_size: int,
    weights: Sequence[float],
    seed: int,
) -> grain.DatasetIterator:
    """Endless batches of the training examples of several tasks.

    Every task is reshuffled each time it has been gone through. Everything is decided by the
    arguments, and the iterator's `get_state()`, a small dict that JSON can hold, continues exactly
    where it was in a new iterator's `set_state()`.

    Args:
        splits: the tasks; a task's number, in `task_ids`, is its place in this list.
        tokenizer: makes the tokens.
        template: the text around questions and answers.
        sequence_length: T, the length of a row.
        batch_size: B, the number of rows.
        weights: how often an example of each task is drawn, relative to the others; empty for
            equally often.
        seed: of the shuffling.

    Returns:
        An iterator over dicts of arrays of shape (B, T): `inputs`, `targets`, `task_ids`,
        `segment_ids` and `positions` in int32, `loss_mask` in float32. `segment_ids` is 0 exactly
        at padding, where everything else is 0 too.

    Raises:
        UserError: the weights are not one positive number a task, or an example does not fit.
    """
    _check_weights(splits, weights)
    tasks = [
        grain.MapDataset.source(
            encode_examples(
                split.task_name, split.train, tokenizer, template, task_id, sequence_length
            )
        )
        .seed(stable_seed('shuffle', split.task_name, seed))
        .shuffle()
        .repeat()
        for task_id, split in enumerate(splits)
    ]
    mixed = grain.MapDataset.mix(tasks, weights or None).to_iter_dataset(IN_MEMORY)
    rows = pack(mixed, sequence_length, seed=stable_seed('rows', seed), shuffle=True)
    return iter(rows.batch(batch_size, drop_remainder=True))


def _check_weights(splits: Sequence[Split], weights: Sequence[float]) -> None:
    if weights and (len(weights) != len(splits) or min(weights) <= 0):
        names = ', '.join(split.task_name for split in splits)
        raise UserError(
            f'weights must be one positive number for each task ({names}), not {tuple(weights)}.'
        )

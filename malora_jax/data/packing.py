"""Sequence packing: several examples per row by best fit, for training and for evaluation.

B is the number of rows of a batch, T the number of tokens (positions) of a row.
"""

import bisect
import functools
from collections.abc import Iterable, Iterator

import grain
import numpy as np

from malora_jax.data.encoding import encode_example
from malora_jax.data.examples import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import TokenizerProtocol

# Data in memory needs no reader threads.
IN_MEMORY = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

# Number of rows (bins) that are filled at the same time. More rows leave less padding, but take
# longer to repack on resume. With short examples and T = 256, 8 rows at a time fill 94% of the
# positions and 64 rows fill 96%.
_NUM_PACKING_BINS = 64

_FEATURES = ('inputs', 'targets', 'loss_mask', 'task_ids')


def pack(
    examples: grain.IterDataset, sequence_length: int, *, seed: int, shuffle: bool
) -> grain.IterDataset:
    """Pack tokenized examples into rows; no example is split across rows.

    Args:
        examples: Results of `encode_example`, each with at most `sequence_length` positions.
        sequence_length: T, the number of positions of a row.
        seed: Random seed of the order of rows.
        shuffle: Whether to shuffle the rows within each group. (Grain fills a group of
            `_NUM_PACKING_BINS` rows at a time.) If False, the first rows of a group are the
            fullest.

    Returns:
        Rows as dicts of arrays of shape (T,): the features of the examples, `segment_ids` (1, 2, …
        for the examples of a row, 0 for padding) and `positions` (0, 1, … within each example). The
        features and positions are 0 at padding.
    """
    rows = grain.experimental.BestFitPackIterDataset(
        examples,
        length_struct=dict.fromkeys(_FEATURES, sequence_length),
        num_packing_bins=_NUM_PACKING_BINS,
        seed=seed,
        shuffle_bins=shuffle,
    )
    return rows.map(_drop_copies)


def pack_lengths(
    examples: Iterable[tuple[int, int]], sequence_length: int, *, seed: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the rows that `pack` makes from examples, given only their lengths.

    The rows are in the same order as those of `pack` with the same seed and `shuffle=True`. So the
    examples in any number of rows can be counted without tokenizing or copying anything.

    Args:
        examples: Pairs (task index, length), one per example in drawing order; lengths from 1 to
            `sequence_length`.
        sequence_length: T, the number of positions of a row.
        seed: Random seed of the order of rows.

    Yields:
        The (task index, length) pairs of the examples in each complete row.
    """
    packed = 0
    rows: list[list[tuple[int, int]]] = []
    # Sorted pairs (free positions, row number) of the rows (bins) that are still being filled. The
    # best fit is the row with the fewest free positions that suffice; of several such rows, it is
    # the first.
    free: list[tuple[int, int]] = []
    for example in examples:
        length = example[1]
        best_fit = bisect.bisect_left(free, (length,))
        if best_fit == len(free):
            order = np.random.default_rng(seed + packed).permuted(range(len(rows)))
            yield from (rows[number] for number in order)
            packed += len(rows)
            rows = [[] for _ in range(_NUM_PACKING_BINS)]
            free = [(sequence_length, number) for number in range(_NUM_PACKING_BINS)]
            best_fit = 0
        left, number = free.pop(best_fit)
        rows[number].append(example)
        bisect.insort(free, (left - length, number))


def _drop_copies(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep only one copy of the segment IDs and positions, which Grain makes for every feature."""
    return {
        **{name: row[name] for name in _FEATURES},
        'segment_ids': row['inputs_segment_ids'],
        'positions': row['inputs_positions'],
    }


def packed_batches(
    examples: Iterable[tuple[Example, int]],
    tokenizer: TokenizerProtocol,
    template: Template,
    sequence_length: int,
    batch_size: int,
    truncate: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Return packed batches that contain each example exactly once, for an evaluation loss.

    For example, with the held-out examples of one task::

        examples = [(example, 0) for example in split.held_out]
        for batch in packed_batches(examples, tokenizer, get_template('plain'), 256, 8):
            ...

    Args:
        examples: Pairs of an example and the index of its task.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        sequence_length: T, the number of positions of a row.
        batch_size: B; the last batch is filled up with rows of padding.
        truncate: Whether to truncate longer examples instead of raising an error.

    Returns:
        An iterator over batches, dicts of arrays of shape (B, T) with the keys of `train_iterator`.

    Raises:
        UserError: An example does not fit and `truncate` is False.
    """
    encoded = [
        encode_example(tokenizer, template, example, task_id, sequence_length, truncate)
        for example, task_id in examples
    ]
    dataset = grain.MapDataset.source(encoded).to_iter_dataset(IN_MEMORY)
    rows = pack(dataset, sequence_length, seed=0, shuffle=False)
    fill_up = functools.partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    return iter(rows.batch(batch_size, batch_fn=fill_up))

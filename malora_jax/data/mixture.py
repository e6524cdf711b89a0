"""Training mixture: shuffle, repeat, mix, tokenize, pack and batch examples of several tasks."""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from typing import Any

import grain
import numpy as np

from malora_jax.data.encoding import encode_example
from malora_jax.data.examples import Example
from malora_jax.data.packing import pack
from malora_jax.data.seeds import stable_seed
from malora_jax.data.splits import TaskSplit
from malora_jax.data.streams import RowStreams
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import TokenizerProtocol
from malora_jax.errors import UserError

# Number of examples that each worker thread may prefetch.
_READ_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    """Grain transform that applies `encode_example`, so that examples are tokenized when drawn."""

    tokenizer: TokenizerProtocol
    template: Template
    task_id: int
    sequence_length: int
    truncate: bool

    def map(self, example: Example) -> dict[str, np.ndarray]:
        return encode_example(
            self.tokenizer,
            self.template,
            example,
            self.task_id,
            self.sequence_length,
            self.truncate,
        )


def train_iterator(
    splits: Sequence[TaskSplit],
    tokenizer: TokenizerProtocol,
    template: Template,
    *,
    sequence_length: int,
    batch_size: int,
    shares: Sequence[float],
    seed: int,
    truncate: bool = False,
    workers: int = 0,
    streams: int = 1,
    read_streams: Collection[int] | None = None,
    saved_streams: Collection[int] | None = None,
) -> RowStreams:
    """Return endless batches of packed training examples from several tasks.

    Each task is reshuffled for every pass over its examples. All arguments except `workers`,
    `read_streams` and `saved_streams` determine the order. The iterator can be checkpointed:
    `get_state()` returns a small dict for JSON, and a new iterator continues at exactly the same
    place after `set_state()`.

    For example, with two tasks drawn equally often::

        batches = train_iterator(
            splits, tokenizer, get_template('plain'), sequence_length=256, batch_size=32,
            shares=mixture_shares(splits, (), size_exponent=0.0), seed=0,
        )
        batch = next(batches)

    Args:
        splits: Splits of the tasks. The index of a task in this list is its number in `task_ids`.
            Tasks without training examples are not drawn.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        sequence_length: T, the number of tokens per packed row.
        batch_size: B, the number of packed rows per batch.
        shares: Share of each task among the drawn examples, from `mixture_shares`.
        seed: Random seed of the shuffling.
        truncate: Whether to truncate examples that are longer than a row. Otherwise there must be
            none, which `measure_examples` checks.
        workers: Number of threads that read and tokenize ahead; 0 = nothing is prefetched. The
            order and the state do not depend on this number.
        streams: S, the number of independent streams, a divisor of B. Examples are dealt to the
            streams round-robin, and each stream packs its own rows.
        read_streams: Indices of the streams that this process reads; None = all.
        saved_streams: Indices of the streams whose position this process saves in checkpoints; None
            = all that it reads.

    Returns:
        An iterator over dicts of arrays of shape (B, T): int32 `inputs`, `targets`, `task_ids`,
        `segment_ids` and `positions`, and float32 `loss_mask`. `segment_ids` is 0 exactly at
        padding, where all other arrays are 0 too.
    """
    tasks = [
        shuffle_and_repeat(split.task_name, split.train, seed).map(
            _Encode(tokenizer, template, task_id, sequence_length, truncate)
        )
        for task_id, split in enumerate(splits)
        if split.train
    ]
    mixed = mix(tasks, [share for share in shares if share])
    # Threads suffice because the tokenizer releases the GIL. Unlike worker processes, they cannot
    # outlive a killed run.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=_READ_AHEAD * workers)

    def stream(number: int) -> grain.DatasetIterator:
        dealt = mixed if streams == 1 else mixed[number::streams]
        rows = pack(
            dealt.to_iter_dataset(options),
            sequence_length,
            seed=stream_seed(seed, number),
            shuffle=True,
        )
        return iter(rows.batch(batch_size // streams, drop_remainder=True))

    stream_indices = range(streams) if read_streams is None else read_streams
    return RowStreams(
        {number: stream(number) for number in stream_indices},
        streams,
        None if saved_streams is None else {*saved_streams},
    )


def shuffle_and_repeat(task_name: str, examples: Sequence[Any], seed: int) -> grain.MapDataset:
    """Return the endless sequence of a task's examples, reshuffled for each epoch."""
    source = grain.MapDataset.source(examples).seed(stable_seed('shuffle', task_name, seed))
    return source.shuffle().repeat()


def mix(tasks: Sequence[grain.MapDataset], shares: Sequence[float]) -> grain.MapDataset:
    """Return the endless examples of several tasks, evenly interleaved.

    Args:
        tasks: Endless sequences of examples, at least one.
        shares: Positive share of each task.
    """
    return grain.MapDataset.select_from_datasets(tasks, _Interleaving(shares))


def stream_seed(seed: int, number: int) -> int:
    """Return the random seed with which a stream shuffles its packed rows.

    Args:
        seed: Seed of the run.
        number: Index of the stream, from 0.
    """
    return stable_seed('rows', seed, *([number] if number else []))


class _Interleaving:
    """Map from a position in the mixture to a task and a position in that task.

    The tasks are interleaved evenly: in any range of positions, each task has about its share.
    `grain.MapDataset.mix` interleaves in the same way, but rounds the shares to hundredths of the
    smallest share. If the shares are proportional to the numbers of examples, an epoch must use
    every example exactly once, and such rounding would prevent that.
    """

    # Resolution of the shares: the smallest share has this integer weight.
    _PARTS = 10**6

    def __init__(self, shares: Sequence[float]):
        self._weights = [round(share / min(shares) * self._PARTS) for share in shares]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        # Of the positions left for the remaining tasks, `before` lie before this position, and
        # `through` lie before or at it. `rest` is the sum of the weights of these tasks.
        before, through, rest = position, position + 1, sum(self._weights)
        for task, weight in enumerate(self._weights):
            left_before = before * (rest - weight) // rest
            left_through = through * (rest - weight) // rest
            if through - left_through > before - left_before:
                return task, before - left_before
            before, through, rest = left_before, left_through, rest - weight
        raise AssertionError  # Unreachable: the last task takes all remaining positions.


def mixture_shares(
    splits: Sequence[TaskSplit], weights: Sequence[float], size_exponent: float
) -> list[float]:
    """Return the share of each task among the drawn examples.

    For example, with two tasks and an equal share for each::

        mixture_shares(splits, (), size_exponent=0.0)  # [0.5, 0.5]

    Args:
        splits: Splits of the tasks.
        weights: Relative shares of the tasks that have training examples; empty for shares by size.
        size_exponent: Exponent α: the share of a task of n examples is proportional to n^α. 0 is
            the uniform blend of the paper, 1 is proportional to size, and 1 / τ is sampling at
            temperature τ (Raffel et al. 2020, section 3.5.2).

    Returns:
        One share per split, 0 for a split without training examples; the shares sum to 1.

    Raises:
        UserError: The weights are not one positive number for each task with training examples.
    """
    trained = [split.task_name for split in splits if split.train]
    if weights and (len(weights) != len(trained) or min(weights) <= 0):
        raise UserError(
            f'weights must be one positive number for each task ({", ".join(trained)}), not '
            f'{tuple(weights)}.'
        )
    weight_by_task = dict(zip(trained, weights, strict=True)) if weights else {}
    relative = [
        weight_by_task.get(split.task_name, len(split.train) ** size_exponent)
        if split.train
        else 0.0
        for split in splits
    ]
    return [share / sum(relative) for share in relative]

"""The training mixture: tasks shuffled, repeated, mixed, tokenised, packed and batched."""

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
from malora_jax.data.splits import Split
from malora_jax.data.streams import RowStreams
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError

# Examples that each worker may be ahead.
_READ_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class _Encode(grain.transforms.Map):
    """`encode_example` as a step of Grain, so that examples are tokenised when they are drawn."""

    tokenizer: Tokenizer
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
    splits: Sequence[Split],
    tokenizer: Tokenizer,
    template: Template,
    *,
    sequence_length: int,
    batch_size: int,
    shares: Sequence[float],
    seed: int,
    truncate: bool = False,
    workers: int = 0,
    streams: int = 1,
    read: Collection[int] | None = None,
    saved: Collection[int] | None = None,
) -> RowStreams:
    """Endless batches of the training examples of several tasks.

    Every task is reshuffled each time it has been gone through. Everything is decided by the
    arguments but `workers`, and the iterator's `get_state()`, a small dict that JSON can hold,
    continues exactly where it was in a new iterator's `set_state()`.

    Args:
        splits: the tasks; a task's number, in `task_ids`, is its place in this list. Those without
            training examples are not drawn.
        tokenizer: makes the tokens.
        template: the text around questions and answers.
        sequence_length: T, the length of a row.
        batch_size: B, the number of rows.
        shares: how often an example of each task is drawn, as `mixture_shares` gives them.
        seed: of the shuffling.
        truncate: whether longer examples are cut.
        workers: threads that read and tokenise ahead; 0 = nothing is done ahead. The order is the
            same, and so is the state.
        streams: S, to which examples are dealt one by one, and which make rows of their own; a
            divisor of B.
        read: which of them are read here; all by default.
        saved: the position of which is saved from here; that of all that are read by default.

    Returns:
        An iterator over dicts of arrays of shape (B, T): `inputs`, `targets`, `task_ids`,
        `segment_ids` and `positions` in int32, `loss_mask` in float32. `segment_ids` is 0 exactly
        at padding, where everything else is 0 too.
    """
    tasks = [
        shuffled(split.task_name, split.train, seed).map(
            _Encode(tokenizer, template, task_id, sequence_length, truncate)
        )
        for task_id, split in enumerate(splits)
        if split.train
    ]
    mixed = mix(tasks, [share for share in shares if share])
    # Threads: the tokenizer runs beside them, and none is left behind by a kill.
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

    wanted = range(streams) if read is None else read
    return RowStreams(
        {number: stream(number) for number in wanted}, streams, None if saved is None else {*saved}
    )


def shuffled(task_name: str, examples: Sequence[Any], seed: int) -> grain.MapDataset:
    """Return the endless sequence of a task's examples, reshuffled for each pass."""
    source = grain.MapDataset.source(examples).seed(stable_seed('shuffle', task_name, seed))
    return source.shuffle().repeat()


def mix(tasks: Sequence[grain.MapDataset], shares: Sequence[float]) -> grain.MapDataset:
    """Return the examples of endless tasks, interleaved evenly.

    Args:
        tasks: At least one endless sequence of examples.
        shares: Positive share of each task.
    """
    return grain.MapDataset.select_from_datasets(tasks, _Interleaving(shares))


def stream_seed(seed: int, number: int) -> int:
    """Return the seed of the order of rows in a stream."""
    return stable_seed('rows', seed, *([number] if number else []))


class _Interleaving:
    """Maps a position in the mixture to a task and a position in that task.

    Any stretch of the mixture has the tasks' shares. `grain.MapDataset.mix` interleaves in the same
    way, but rounds the shares to hundredths of the smallest one, so that with shares proportional
    to sizes a task would not be gone through once in each epoch.
    """

    # Parts of the smallest share that are told apart.
    _PARTS = 10**6

    def __init__(self, shares: Sequence[float]):
        self._weights = [round(share / min(shares) * self._PARTS) for share in shares]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        # Of the positions before this one and up to it, those that the tasks so far leave.
        before, through, rest = position, position + 1, sum(self._weights)
        for task, weight in enumerate(self._weights):
            left_before = before * (rest - weight) // rest
            left_through = through * (rest - weight) // rest
            if through - left_through > before - left_before:
                return task, before - left_before
            before, through, rest = left_before, left_through, rest - weight
        raise AssertionError  # The last task takes every position that is left.


def mixture_shares(
    splits: Sequence[Split], weights: Sequence[float], size_exponent: float
) -> list[float]:
    """The share of each task among the examples that are drawn.

    Args:
        splits: the tasks.
        weights: relative shares of the tasks that have training examples; empty for shares by size.
        size_exponent: the share of a task of n examples is proportional to n to this power: 0 is
            the uniform blend of the paper, 1 is proportional, 1 / τ is what is called temperature τ
            (Raffel et al. 2020, section 3.5.2).

    Returns:
        A number for each split, 0 for one without training examples; their sum is 1.

    Raises:
        UserError: the weights are not one positive number a task.
    """
    trained = [split.task_name for split in splits if split.train]
    if weights and (len(weights) != len(trained) or min(weights) <= 0):
        raise UserError(
            f'weights must be one positive number for each task ({", ".join(trained)}), not '
            f'{tuple(weights)}.'
        )
    given = dict(zip(trained, weights, strict=True)) if weights else {}
    relative = [
        given.get(split.task_name, len(split.train) ** size_exponent) if split.train else 0.0
        for split in splits
    ]
    return [share / sum(relative) for share in relative]

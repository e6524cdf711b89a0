"""Simulation of sequence packing, to count the examples and steps of a run before it starts.

Sequence packing puts a varying number of examples into a batch. So the number of steps per epoch
follows only from a simulation, which needs nothing but the lengths of the examples.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from malora_jax.data.mixture import mix, shuffle_and_repeat, stream_seed
from malora_jax.data.packing import pack_lengths
from malora_jax.data.token_counts import TokenCounts
from malora_jax.progress import ProgressBar


@dataclasses.dataclass(frozen=True)
class DrawCounts:
    """Counts of the examples that the first steps of a run draw.

    For example, 2 steps that draw 60 and 4 examples of two tasks, in rows that are 95% full::

        DrawCounts(2, (60, 4), 0.95)

    Attributes:
        steps: Number of steps.
        examples: Number of examples drawn from each task.
        packing_efficiency: Fraction of the token positions that are not padding.
    """

    steps: int
    examples: tuple[int, ...]
    packing_efficiency: float


def count_drawn_examples(
    names: Sequence[str],
    token_counts: Sequence[TokenCounts],
    shares: Sequence[float],
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    streams: int = 1,
    steps: int = 0,
    examples: int = 0,
) -> DrawCounts:
    """Count the examples that `train_iterator` draws, by simulating its order and its packing.

    The result depends neither on the number of hosts nor on the number of workers.

    For example, for one task and an epoch of its examples::

        size = measure_examples('mine', split.train, tokenizer, template, 256)
        draws = count_drawn_examples(
            ['mine'], [size], [1.0], sequence_length=256, batch_size=32, seed=0,
            examples=size.examples,
        )

    Args:
        names: Names of the tasks.
        token_counts: Token counts of the tasks' training examples.
        shares: Share of each task among the drawn examples; 0 for a task that is not drawn.
        sequence_length: T, the number of tokens per packed row.
        batch_size: Number of packed rows per optimizer step, gradient accumulation included.
        seed: Seed of the run.
        streams: Number of independent streams of rows, S; a divisor of `batch_size`.
        steps: Maximum number of steps to count; 0 = no limit. This limit or `examples` must be
            given.
        examples: Number of examples; the count ends after the step that reaches it. 0 = no limit.
    """
    tasks = [
        shuffle_and_repeat(name, [(task, length) for length in size.lengths.tolist()], seed)
        for task, (name, size) in enumerate(zip(names, token_counts, strict=True))
        if shares[task]
    ]
    mixed = mix(tasks, [share for share in shares if share])

    def rows(number: int) -> Iterator[list[tuple[int, int]]]:
        dealt = (mixed[position] for position in itertools.count(number, streams))
        return pack_lengths(dealt, sequence_length, seed=stream_seed(seed, number))

    of_streams = [rows(number) for number in range(streams)]
    drawn, tokens, step = np.zeros(len(names), int), 0, 0
    total = None if steps else examples
    with ProgressBar('count examples', total, 'example', delay=1.0) as bar:
        while (not steps or step < steps) and (not examples or drawn.sum() < examples):
            of_step = [
                example
                for stream in of_streams
                for row in itertools.islice(stream, batch_size // streams)
                for example in row
            ]
            task_ids, lengths = np.array(of_step).T
            drawn += np.bincount(task_ids, minlength=len(names))
            tokens += int(lengths.sum())
            step += 1
            bar.advance(len(of_step))
    fill = tokens / (step * batch_size * sequence_length)
    return DrawCounts(step, tuple(drawn.tolist()), fill)

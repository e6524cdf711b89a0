"""The examples that a run will draw, counted in advance and compared with its batches."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from malora_jax.data import (
    Example,
    Task,
    TaskSplit,
    TokenCounts,
    count_drawn_examples,
    describe_draws,
    exact_match,
    get_template,
    measure_examples,
    mixture_shares,
    train_iterator,
)
from tests.helpers.data import make_train_iterator, take, unpack

PLAIN = get_template('plain')
LENGTH, ROWS = 256, 4


def measured(splits, tokenizer):
    return [measure_examples('some', split.train, tokenizer, PLAIN, LENGTH) for split in splits]


def counted(splits, sizes, shares, seed=0, **settings):
    names = [split.task_name for split in splits]
    return count_drawn_examples(
        names, sizes, shares, sequence_length=LENGTH, batch_size=ROWS, seed=seed, **settings
    )


@pytest.mark.parametrize('streams', [1, 2, 4])
@pytest.mark.parametrize('weights', [(), (1.0, 2.0, 3.0)])
def test_counts_are_those_of_the_batches(splits, tokenizer, weights, streams):
    """Counts agree throughout two packs, in each of which 64 rows are shuffled together.

    A pack has the rows of 16 steps.
    """
    shares, sizes = mixture_shares(splits, weights, size_exponent=0.0), measured(splits, tokenizer)
    batches = make_train_iterator(
        splits, tokenizer, weights, seed=5, streams=streams, workers=streams - 1
    )
    drawn, filled = np.zeros(3, int), 0
    for steps in range(1, 40):
        batch = next(batches)
        filled += (batch['segment_ids'] > 0).sum()
        for example in unpack([batch]):
            drawn[example['task_ids'][0]] += 1
        if steps in (1, 5, 15, 16, 17, 32, 39):
            found = counted(splits, sizes, shares, seed=5, streams=streams, steps=steps)
            assert found.steps == steps and found.examples == tuple(drawn)
            assert found.packing_efficiency == pytest.approx(filled / (steps * ROWS * LENGTH))


def test_the_count_ends_with_the_step_that_draws_enough(splits, tokenizer):
    shares = mixture_shares(splits, (), size_exponent=0.0)
    splits[1] = dataclasses.replace(splits[1], train=[])
    shares[1], sizes = 0.0, measured(splits, tokenizer)
    for examples in (1, 100, 777):
        found = counted(splits, sizes, shares, examples=examples)
        assert sum(found.examples) >= examples and found.examples[1] == 0
        if found.steps > 1:
            fewer = counted(splits, sizes, shares, steps=found.steps - 1)
            assert sum(fewer.examples) < examples
    assert counted(splits, sizes, shares, steps=3, examples=10**6).steps == 3
    assert counted(splits, sizes, shares, steps=1000, examples=5).steps == 1


def test_shares_by_size_draw_every_example_once_an_epoch(tokenizer):
    """Each row has one example; no share is a whole number of hundredths of the smallest."""
    sizes = (1000, 1009, 1998)
    splits = [
        TaskSplit(
            Task(name, None, exact_match), [Example('q' * 200, f'{n}', {}) for n in range(n)], [], n
        )
        for name, n in zip('abc', sizes, strict=True)
    ]
    batches = train_iterator(
        splits,
        tokenizer,
        PLAIN,
        sequence_length=LENGTH,
        batch_size=1,
        shares=mixture_shares(splits, (), size_exponent=1.0),
        seed=0,
    )
    drawn = Counter(int(batch['task_ids'][0, 0]) for batch in take(batches, sum(sizes)))
    # The tolerance allows for rows that are shuffled across the end of the epoch.
    for task, size in enumerate(sizes):
        assert drawn[task] == pytest.approx(size, abs=8)
    shares = mixture_shares(splits, (), size_exponent=1.0)
    of_epochs = [TokenCounts(n, 200 * n, n, 0, 200, np.full(n, 200)) for n in sizes]
    found = count_drawn_examples(
        'abc', of_epochs, shares, sequence_length=200, batch_size=1, seed=0, examples=64 * 4007
    )
    # 64 epochs end at the end of a pack.
    assert found.examples == tuple(64 * size for size in sizes)


def test_a_line_tells_what_is_drawn(splits, tokenizer):
    shares = mixture_shares(splits, (1.0, 1.0, 2.0), size_exponent=0.0)
    sizes = measured(splits, tokenizer)
    found = dataclasses.replace(counted(splits, sizes, shares, steps=2), examples=(5, 6, 11))
    text = describe_draws(
        dataclasses.replace(found, packing_efficiency=0.963), splits, 2, ROWS, LENGTH
    )
    assert text == (
        '2 steps of 4 rows of 256 tokens, 96.3% full, draw 22 examples (0.18 epochs): '
        'a 5 (0.12), b 6 (0.15), c 11 (0.28).'
    )
    text = describe_draws(
        dataclasses.replace(found, packing_efficiency=0.963), splits, 1000, ROWS, LENGTH
    )
    assert text == (
        '1,000 steps of 4 rows of 256 tokens, about 96.3% full, draw about 11,000 examples '
        '(91.67 epochs): a 2,500 (62.50), b 3,000 (75.00), c 5,500 (137.50).'
    )

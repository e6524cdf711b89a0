"""Rows of a batch depend on the number of streams, not on which process reads them."""

import json
from collections import Counter

import numpy as np
import pytest

from malora_jax.data import Example, TaskSplit
from tests.helpers.data import assert_same_batches, make_train_iterator, take, unpack

# Each batch has four rows: two of each of two streams.
ROWS = (slice(0, 2), slice(2, 4))


@pytest.mark.parametrize('read', [(0,), (1, 3), (3,)])
def test_who_reads_some_streams_has_their_rows(splits, tokenizer, read):
    """Each of the four rows of a batch is one stream; unread streams give padding."""
    whole = take(make_train_iterator(splits, tokenizer, streams=4), 3)
    some = take(make_train_iterator(splits, tokenizer, streams=4, read_streams=read), 3)
    for full, part in zip(whole, some, strict=True):
        for key in full:
            for row in range(4):
                expected = full[key][row] if row in read else np.zeros_like(full[key][row])
                np.testing.assert_array_equal(part[key][row], expected)


def test_examples_are_dealt_and_none_is_lost_or_repeated(splits, tokenizer):
    """Rows have one example; each stream shuffles 64 together, which are half of two epochs."""
    numbers = range(10, 74)
    alone = [
        TaskSplit(splits[0].task, [Example('q' * 200, f'{n}', {}) for n in numbers], [], 1_000)
    ]
    batches = take(make_train_iterator(alone, tokenizer, streams=2), 64)
    halves = [[{key: x[half] for key, x in each.items()} for each in batches] for half in ROWS]
    drawn = [
        Counter(tokenizer.decode(example['inputs'][-2:].tolist()) for example in unpack(half))
        for half in halves
    ]
    assert drawn[0] + drawn[1] == {str(n): 4 for n in numbers}
    assert drawn[0] != drawn[1]


def test_it_goes_on_where_it_stood_whoever_reads_then(splits, tokenizer):
    """One reader of all streams resumes from the combined positions of two readers."""
    expected = take(make_train_iterator(splits, tokenizer, streams=2), 4)
    states = {}
    for number in (0, 1):
        reader = make_train_iterator(splits, tokenizer, streams=2, read_streams=[number])
        take(reader, 2)
        states |= json.loads(json.dumps(reader.get_state()))
    fresh = make_train_iterator(splits, tokenizer, streams=2)
    fresh.set_state(states)
    assert_same_batches(take(fresh, 2), expected[2:])

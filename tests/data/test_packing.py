import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.data import Example, encode_example, get_template, packed_batches
from tests.helpers.data import BATCH_KEYS, ByteTokenizer, as_bytes, unpack

PLAIN = get_template('plain')


def numbered(lengths: list[int]) -> list[tuple[Example, int]]:
    return [(Example('q' * length, str(i), {}), i % 5) for i, length in enumerate(lengths)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 43), min_size=1, max_size=80), st.integers(1, 5))
def test_every_example_once_and_whole(lengths, batch_size):
    tokenizer, examples = ByteTokenizer(), numbered(lengths)
    batches = list(packed_batches(examples, tokenizer, PLAIN, 64, batch_size))
    expected = [encode_example(tokenizer, PLAIN, e, task_id, 64) for e, task_id in examples]
    assert as_bytes(unpack(batches)) == as_bytes(expected)
    for batch in batches:
        assert {array.shape for array in batch.values()} == {(batch_size, 64)}


def test_types(tokenizer):
    (batch,) = packed_batches(numbered([3]), tokenizer, PLAIN, 32, 2)
    assert batch['loss_mask'].dtype == np.float32
    assert {batch[key].dtype for key in BATCH_KEYS if key != 'loss_mask'} == {np.dtype(np.int32)}


def test_by_hand(tokenizer):
    examples = [(Example('a', 'b', {}), 1), (Example('c', 'd', {}), 2)]
    (batch,) = packed_batches(examples, tokenizer, PLAIN, 48, 1)
    text = tokenizer.decode(batch['inputs'][0, :40].tolist())
    assert text == 'Question: a\nAnswer: bQuestion: c\nAnswer: d'[:40]
    length = len('Question: a\nAnswer: b')
    assert batch['segment_ids'][0].tolist() == [1] * length + [2] * length + [0] * 6
    assert batch['task_ids'][0].tolist() == [1] * length + [2] * length + [0] * 6
    assert batch['targets'][0, length - 1] == tokenizer.eos_id
    # ' ', 'b' and the end token carry the loss.
    assert batch['loss_mask'][0, :length].tolist() == [0] * (length - 3) + [1] * 3


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_short_examples_fill_the_rows(tokenizer, seed):
    rng = random.Random(seed)
    examples = numbered([rng.randint(5, 45) for _ in range(2_000)])
    # Skip the last 64 rows, which were still open when the examples ended.
    batches = list(packed_batches(examples, tokenizer, PLAIN, 256, 8))[:-8]
    assert np.mean([batch['segment_ids'] > 0 for batch in batches]) >= 0.95


def test_rows_of_padding_fill_up_the_last_batch(tokenizer):
    (batch,) = packed_batches(numbered([20]), tokenizer, PLAIN, 64, 4)
    assert batch['segment_ids'][0].any()
    assert not any(array[1:].any() for array in batch.values())

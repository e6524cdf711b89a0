import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from data_helpers import as_bytes, unpack

from malora_jax.data import (
    Example,
    Split,
    Task,
    encode_example,
    exact_match,
    get_template,
    train_iterator,
)
from malora_jax.errors import UserError

PLAIN = get_template('plain')


def iterate(splits, tokenizer, weights=(), seed=0):
    return train_iterator(
        splits, tokenizer, PLAIN, sequence_length=256, batch_size=4, weights=weights, seed=seed
    )


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def take(iterator, count):
    return list(islice(iterator, count))


def tasks_drawn(batches) -> Counter:
    return Counter(int(example['task_ids'][0]) for example in unpack(batches))


def test_batches_hold_whole_training_examples(splits, tokenizer):
    batches = take(iterate(splits, tokenizer), 10)
    assert {array.shape for batch in batches for array in batch.values()} == {(4, 256)}
    known = {
        as_bytes([encode_example(tokenizer, PLAIN, example, task_id, 256)])[0]
        for task_id, split in enumerate(splits)
        for example in split.train
    }
    assert set(as_bytes(unpack(batches))) <= known


def test_no_held_out_question_is_trained_on(splits, tokenizer):
    """Over several epochs of each task, all that is trained on, and nothing that is held out."""
    batches = take(iterate(splits, tokenizer), 32)
    texts = [tokenizer.decode(example['inputs'].tolist()) for example in unpack(batches)]
    asked = {text.removeprefix('Question: ').split('\n')[0] for text in texts}
    assert asked == {example.question for split in splits for example in split.train}
    held_out = [example.question for split in splits for example in split.held_out]
    assert len(held_out) == 30
    everything = '\n'.join(texts)
    # A question is its letter and number, once or more.
    assert not [question for question in held_out if question[:4] in everything]


def test_rows_are_full(splits, tokenizer):
    batches = take(iterate(splits, tokenizer), 64)
    assert np.mean([batch['segment_ids'] > 0 for batch in batches]) >= 0.95


def test_an_epoch_holds_every_example_once_and_the_next_is_shuffled_anew(splits, tokenizer):
    # Rows of one example, so that the order is the order of drawing but for rows shuffled together.
    alone = [
        Split(splits[0].task, [Example('q' * 200, f'{n}', {}) for n in range(10, 74)], [], 1_000)
    ]
    batches = take(iterate(alone, tokenizer), 64)
    answers = [tokenizer.decode(example['inputs'][-2:].tolist()) for example in unpack(batches)]
    epochs = [answers[i : i + 64] for i in range(0, 256, 64)]
    assert all(sorted(epoch) == [str(n) for n in range(10, 74)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_seed_decides_everything(splits, tokenizer):
    first, again, other = (take(iterate(splits, tokenizer, seed=s), 5) for s in (0, 0, 1))
    assert_same(first, again)
    assert any((a['inputs'] != b['inputs']).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize('consumed', [0, 1, 7, 16, 21])
def test_a_fresh_iterator_continues_in_the_middle_of_a_pack(splits, tokenizer, consumed):
    """64 rows are packed at a time, which is 16 batches of 4."""
    iterator = iterate(splits, tokenizer, weights=(1.0, 2.0, 3.0))
    take(iterator, consumed)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 20)
    fresh = iterate(splits, tokenizer, weights=(1.0, 2.0, 3.0))
    fresh.set_state(state)
    assert_same(take(fresh, 20), expected)


def test_the_state_can_be_set_on_a_used_iterator(splits, tokenizer):
    iterator = iterate(splits, tokenizer)
    take(iterator, 5)
    state = iterator.get_state()
    expected = take(iterator, 5)
    iterator.set_state(state)
    assert_same(take(iterator, 5), expected)


@pytest.mark.parametrize('weights', [(), (1.0, 1.0, 2.0), (0.2, 0.5, 0.3)])
def test_weights_are_shares_of_the_examples(splits, tokenizer, weights):
    drawn = tasks_drawn(take(iterate(splits, tokenizer, weights=weights), 64))
    shares = np.array(weights or (1.0, 1.0, 1.0))
    observed = np.array([drawn[task_id] for task_id in range(3)]) / drawn.total()
    np.testing.assert_allclose(observed, shares / shares.sum(), atol=0.01)


def test_any_stretch_of_the_mixture_is_balanced(splits, tokenizer):
    drawn = tasks_drawn(take(iterate(splits, tokenizer), 4))
    assert max(drawn.values()) < 1.6 * min(drawn.values())


@pytest.mark.parametrize('weights', [(1.0,), (1.0, 1.0, 0.0), (1.0, -1.0, 1.0)])
def test_wrong_weights(splits, tokenizer, weights):
    with pytest.raises(UserError, match=r'one positive number for each task \(a, b, c\)'):
        iterate(splits, tokenizer, weights=weights)


def test_a_long_example_names_its_task_before_training_starts(splits, tokenizer):
    splits.append(
        Split(Task('poems', None, exact_match), [Example('?', 'la' * 200, {})], [], 1_000)
    )
    with pytest.raises(UserError, match=r"^Task 'poems': data.sequence_length is 256; "):
        iterate(splits, tokenizer)

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from malora_jax.data import (
    Example,
    Task,
    TaskSplit,
    encode_example,
    exact_match,
    get_template,
    mixture_shares,
)
from malora_jax.errors import UserError
from tests.helpers.data import as_bytes, assert_same_batches, make_train_iterator, take, unpack

PLAIN = get_template('plain')


def tasks_drawn(batches) -> Counter:
    return Counter(int(example['task_ids'][0]) for example in unpack(batches))


def test_batches_hold_whole_training_examples(splits, tokenizer):
    batches = take(make_train_iterator(splits, tokenizer), 10)
    assert {array.shape for batch in batches for array in batch.values()} == {(4, 256)}
    known = {
        as_bytes([encode_example(tokenizer, PLAIN, example, task_id, 256)])[0]
        for task_id, split in enumerate(splits)
        for example in split.train
    }
    assert set(as_bytes(unpack(batches))) <= known


def test_no_held_out_question_is_trained_on(splits, tokenizer):
    """Several epochs of each task contain all training questions and no held-out question."""
    batches = take(make_train_iterator(splits, tokenizer), 32)
    texts = [tokenizer.decode(example['inputs'].tolist()) for example in unpack(batches)]
    asked = {text.removeprefix('Question: ').split('\n')[0] for text in texts}
    assert asked == {example.question for split in splits for example in split.train}
    held_out = [example.question for split in splits for example in split.held_out]
    assert len(held_out) == 30
    everything = '\n'.join(texts)
    # A question is its letter and number, repeated at least once.
    assert not [question for question in held_out if question[:4] in everything]


def test_rows_are_full(splits, tokenizer):
    batches = take(make_train_iterator(splits, tokenizer), 64)
    assert np.mean([batch['segment_ids'] > 0 for batch in batches]) >= 0.95


def test_an_epoch_holds_every_example_once_and_the_next_is_shuffled_anew(splits, tokenizer):
    # Rows of one example, so that the order is the sampling order except for rows shuffled
    # together.
    alone = [
        TaskSplit(
            splits[0].task, [Example('q' * 200, f'{n}', {}) for n in range(10, 74)], [], 1_000
        )
    ]
    batches = take(make_train_iterator(alone, tokenizer), 64)
    answers = [tokenizer.decode(example['inputs'][-2:].tolist()) for example in unpack(batches)]
    epochs = [answers[i : i + 64] for i in range(0, 256, 64)]
    assert all(sorted(epoch) == [str(n) for n in range(10, 74)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_seed_decides_everything(splits, tokenizer):
    first, again, other = (
        take(make_train_iterator(splits, tokenizer, seed=s), 5) for s in (0, 0, 1)
    )
    assert_same_batches(first, again)
    assert any((a['inputs'] != b['inputs']).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize('consumed', [0, 1, 7, 16, 21])
def test_a_fresh_iterator_continues_in_the_middle_of_a_pack(splits, tokenizer, consumed):
    """64 rows are packed at a time, which gives 16 batches of 4."""
    iterator = make_train_iterator(splits, tokenizer, weights=(1.0, 2.0, 3.0))
    take(iterator, consumed)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 20)
    fresh = make_train_iterator(splits, tokenizer, weights=(1.0, 2.0, 3.0))
    fresh.set_state(state)
    assert_same_batches(take(fresh, 20), expected)


def test_the_state_can_be_set_on_a_used_iterator(splits, tokenizer):
    iterator = make_train_iterator(splits, tokenizer)
    take(iterator, 5)
    state = iterator.get_state()
    expected = take(iterator, 5)
    iterator.set_state(state)
    assert_same_batches(take(iterator, 5), expected)


@pytest.mark.parametrize('weights', [(), (1.0, 1.0, 2.0), (0.2, 0.5, 0.3)])
def test_weights_are_shares_of_the_examples(splits, tokenizer, weights):
    drawn = tasks_drawn(take(make_train_iterator(splits, tokenizer, weights=weights), 64))
    shares = np.array(weights or (1.0, 1.0, 1.0))
    observed = np.array([drawn[task_id] for task_id in range(3)]) / drawn.total()
    np.testing.assert_allclose(observed, shares / shares.sum(), atol=0.01)


def test_any_stretch_of_the_mixture_is_balanced(splits, tokenizer):
    drawn = tasks_drawn(take(make_train_iterator(splits, tokenizer), 4))
    assert max(drawn.values()) < 1.6 * min(drawn.values())


@pytest.mark.parametrize('weights', [(1.0,), (1.0, 1.0, 0.0), (1.0, -1.0, 1.0)])
def test_wrong_weights(splits, weights):
    with pytest.raises(UserError, match=r'one positive number for each task \(a, b, c\)'):
        mixture_shares(splits, weights, 0.0)


def sized(*sizes):
    example = Example('a', 'b', {})
    return [
        TaskSplit(Task(f'task{n}', None, exact_match), [example] * n, [example], n) for n in sizes
    ]


@pytest.mark.parametrize(
    ('exponent', 'shares'),
    [
        (0.0, [1 / 3, 1 / 3, 0, 1 / 3]),
        (1.0, [100 / 410, 10 / 410, 0, 300 / 410]),
        (0.5, [10 / (10 + 10**0.5 + 300**0.5), None, 0, None]),
    ],
)
def test_shares_by_size(exponent, shares):
    found = mixture_shares(sized(100, 10, 0, 300), (), exponent)
    for share, expected in zip(found, shares, strict=True):
        assert expected is None or share == pytest.approx(expected)
    assert sum(found) == pytest.approx(1)


def test_weights_are_those_of_the_tasks_that_are_trained_on():
    assert mixture_shares(sized(5, 0, 7), (1.0, 3.0), 1.0) == [0.25, 0.0, 0.75]


def test_a_task_without_training_examples_is_not_drawn(splits, tokenizer):
    splits[1] = dataclasses.replace(splits[1], train=[])
    drawn = tasks_drawn(take(make_train_iterator(splits, tokenizer), 16))
    assert set(drawn) == {0, 2}
    assert 0.45 < drawn[0] / drawn.total() < 0.55


def test_examples_are_tokenised_when_they_are_drawn(splits, tokenizer):
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    many = Counted(Example(f'{n}' * 20, 'x', {}) for n in range(100_000))
    one = [TaskSplit(Task('many', None, exact_match), many, [], len(many))]
    take(make_train_iterator(one, tokenizer), 2)
    assert 0 < Counted.reads < 2_000


def test_long_examples_are_cut_if_so_wished(splits, tokenizer):
    poems = Task('poems', None, exact_match)
    splits.append(TaskSplit(poems, [Example('?', 'la' * 200, {})], [], 1_000))
    lengths = {
        len(example['inputs'])
        for example in unpack(take(make_train_iterator(splits, tokenizer, truncate=True), 8))
        if example['task_ids'][0] == 3
    }
    assert lengths == {256}

import dataclasses
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malora_jax.data import Example, FileTask, TokenCounts, drop_leaked_questions
from malora_jax.data.describe import describe_split, describe_truncation
from malora_jax.data.splits import TaskSplit
from malora_jax.data.tasks import question_key
from malora_jax.errors import UserError

TASK = FileTask('mine', 'a.tsv', 'q', 'a', 'exact_match')
TESTED = dataclasses.replace(TASK, test_file='t.tsv')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Make the temporary directory the current one, because paths are relative to it."""
    monkeypatch.chdir(tmp_path)


def write(pairs, path: str = 'a.tsv') -> None:
    Path(path).write_text('\n'.join(['q\ta', *(f'{q}\t{a}' for q, a in pairs)]))


def numbered(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f'q{n}', f'a{n}') for n in range(start, start + count)]


def questions(examples) -> list[str]:
    return [example.question for example in examples]


def keys(examples) -> set[str]:
    return {question_key(example.question) for example in examples}


def message(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_sizes_and_origin():
    write([*numbered(40), ('q1', 'a1'), ('Q1', 'other')])
    split = TASK.split(0, 0, held_out=8, validation=4)
    assert (len(split.held_out), len(split.validation), split.num_available) == (8, 4, 40)
    both = {'q1', 'Q1'} <= set(questions(split.train))
    assert len(split.train) == (29 if both else 28)
    assert split.task is TASK
    assert split.origin == {'file': 'a.tsv', 'rows': 42, 'dropped_duplicates': 1}


def test_the_split_is_the_same_on_every_machine():
    """The order is that of the hashes from `printf 0/q0 | sha256sum` and so on."""
    write(numbered(12))
    split = TASK.split(0, 0, held_out=3, validation=2)
    assert questions(split.held_out) == ['q2', 'q5', 'q4']
    assert questions(split.validation) == ['q11', 'q1']


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    pairs = numbered(60)
    write(pairs)
    split = TASK.split(0, 0, 12, 6)
    other = TASK.split(1, 0, 12, 6)
    random.Random(0).shuffle(pairs)
    write(pairs)
    again = TASK.split(0, 0, 12, 6)
    for part in ('train', 'held_out', 'validation'):
        assert questions(getattr(again, part)) == questions(getattr(split, part))
    assert keys(split.held_out) != keys(other.held_out)


PAIRS = st.lists(
    st.tuples(st.text('abA ', min_size=1).filter(str.strip), st.sampled_from('xy')), min_size=1
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(PAIRS, PAIRS, st.integers(1, 3), st.integers(0, 2), st.integers(0, 4), st.integers(0, 9))
def test_no_question_is_in_two_parts_and_growth_holds_out_nothing_trained_on(
    pairs, more, held_out, validation, max_per_task, seed
):
    write(pairs)
    distinct = len({question_key(question) for question, _ in pairs})
    sizes = (seed, max_per_task, held_out, validation)
    if distinct < 2 * (held_out + validation):
        assert f'a.tsv has {distinct} distinct questions; it needs ' in message(TASK.split, *sizes)
        return
    split = TASK.split(*sizes)
    parts = [keys(split.train), keys(split.held_out), keys(split.validation)]
    assert [len(part) for part in parts[1:]] == [held_out, validation]
    left = distinct - held_out - validation
    assert len(parts[0]) == min(max_per_task or left, left)
    assert sum(map(len, parts)) == len(set.union(*parts))
    for example in split.train:
        assert (example.question, example.answer) in [(q.strip(), a) for q, a in pairs]

    everything = TASK.split(seed, 0, held_out, validation)
    rows = {(q.strip(), a) for q, a in pairs if question_key(q) in keys(everything.train)}
    assert {(e.question, e.answer) for e in everything.train} == rows
    assert len(everything.train) == len(rows)

    write([*pairs, *more])
    grown = TASK.split(*sizes)
    assert not keys(grown.held_out) & keys(everything.train)
    assert not keys(grown.held_out) & keys(everything.validation)


def test_more_to_train_on_keeps_what_is_held_out():
    write(numbered(60))
    few, all_of_them = (TASK.split(0, count, 12, 6) for count in (5, 0))
    assert few.held_out == all_of_them.held_out
    assert few.validation == all_of_them.validation
    assert few.train == all_of_them.train[:5]


def test_a_kept_question_is_asked_once_and_all_its_answers_are_right():
    write([('Which?', 'one'), ('which?', 'three'), ('Which?', 'two')])
    split = dataclasses.replace(TASK, test_file='').split(0, 0, 0, 0)
    assert len(split.train) == 3
    write([('other', 'x')], 't.tsv')
    other = dataclasses.replace(TASK, path='t.tsv', test_file='a.tsv')
    [asked] = other.split(0, 0, 8).held_out
    assert asked == Example('Which?', 'one', {'row': 'a.tsv line 2', 'answers': ('one', 'two')})


def test_a_test_file():
    write(numbered(20))
    write(numbered(10, start=20), 't.tsv')
    split = TESTED.split(0, 0, held_out=6, validation=4)
    assert len(split.held_out) == 6
    assert keys(split.held_out) < {f'q{n}' for n in range(20, 30)}
    assert keys(split.train) | keys(split.validation) == {f'q{n}' for n in range(20)}
    assert (len(split.train), len(split.validation)) == (16, 4)
    assert split.origin == {
        'file': 'a.tsv',
        'rows': 20,
        'dropped_duplicates': 0,
        'test_file': 't.tsv',
        'test_rows': 10,
    }
    assert len(TESTED.split(0, 0, held_out=64).held_out) == 10


def test_a_test_file_with_questions_of_the_other():
    write(numbered(20))
    write([*numbered(5, start=20), ('Q3', 'x'), ('q5 ', 'y')], 't.tsv')
    assert message(TESTED.split, 0, 0, 4) == (
        "Task 'mine': 2 questions of t.tsv are also in a.tsv, such as 'Q3' (t.tsv line 7, a.tsv "
        'line 5): remove them from one of the two files.'
    )


def test_too_few():
    write(numbered(23))
    assert message(TASK.split, 0, 0, 8, 4) == (
        'a.tsv has 23 distinct questions; it needs 24 for data.held_out = 8 and data.validation = '
        '4, as half of them must be left to train on.'
    )
    write([('t', 'x')], 't.tsv')
    assert message(TESTED.split, 0, 0, 8, 12) == (
        'a.tsv has 23 distinct questions; it needs 24 for data.validation = 12, as half of them '
        'must be left to train on.'
    )


# Several tasks.


def split_of(name: str, train: str, held_out: str, validation: str = '') -> TaskSplit:
    parts = [
        [Example(letter, 'x', {}) for letter in part] for part in (train, held_out, validation)
    ]
    return TaskSplit(
        dataclasses.replace(TASK, name=name), parts[0], parts[1], 9, parts[2], {'rows': 9}
    )


def test_a_question_that_one_task_keeps_trains_no_other():
    first, second, third = drop_leaked_questions(
        [split_of('one', 'abC', 'd', 'e'), split_of('two', 'Dfe', 'c'), split_of('three', 'g', 'd')]
    )
    assert questions(first.train) == ['a', 'b']
    assert questions(second.train) == ['f']
    assert questions(third.train) == ['g']
    assert [split.origin.get('dropped_shared') for split in (first, second, third)] == [1, 2, None]
    assert questions(first.held_out) == ['d']


def test_a_published_split_stays_as_it_is_and_takes_nothing_from_others():
    public = dataclasses.replace(split_of('public', 'abc', 'd', 'e'), published=True)
    own = split_of('own', 'defg', 'a', 'b')
    assert drop_leaked_questions([public, own]) == [public, own]


def test_nothing_left_to_train_on():
    splits = [split_of('one', 'ab', 'c'), split_of('two', 'c', 'd')]
    assert message(drop_leaked_questions, splits) == (
        "Task 'two' has no examples left to train on: other tasks use all of its questions."
    )


def test_a_question_that_one_task_holds_out_chooses_no_checkpoint_of_another():
    first, second = drop_leaked_questions(
        [split_of('one', 'ab', 'c', 'd'), split_of('two', 'ef', 'g', 'Chd')]
    )
    assert questions(first.validation) == ['d']
    assert questions(second.validation) == ['h', 'd']
    assert [split.origin.get('dropped_shared') for split in (first, second)] == [None, 1]
    assert questions(second.train) == ['e', 'f']
    splits = [split_of('one', 'ab', 'c', 'd'), split_of('two', 'ef', 'g', 'C')]
    assert 'has no examples left to validate on' in message(drop_leaked_questions, splits)


def test_what_is_told_of_a_split():
    write([*numbered(3_000), ('q1', 'a1')])
    split = TASK.split(0, 0, 8)
    assert describe_split(split, TokenCounts(2_992, 12_345, 678, 0, 90)) == (
        'mine: 3,001 rows of a.tsv, 1 exact duplicates dropped, 2,992 examples of 12,345 tokens to '
        'train on, 8 questions held out.'
    )
    write(numbered(9, start=3_000), 't.tsv')
    tested = TESTED.split(0, 0, 8, 4)
    shared = dataclasses.replace(tested, origin={**tested.origin, 'dropped_shared': 7})
    assert describe_split(shared, TokenCounts(2_996, 23_456, 789, 2, 90)) == (
        'mine: 3,001 rows of a.tsv, 9 rows of t.tsv, 1 exact duplicates dropped, 7 dropped because '
        'another task holds them out, 2,996 examples of 23,456 tokens to train on, 2 of them '
        'truncated, 4 questions for validation, 8 questions held out.'
    )


def test_what_truncation_removes_is_told():
    write(numbered(9))
    split = TASK.split(0, 0, 2)
    size = TokenCounts(2_996, 23_456, 789, 1_200, 1_900, cut_first_turns=1_100, dropped_answers=7)
    assert describe_truncation(split, size, 512) == (
        'Warning: mine: 1,100 of 2,996 examples are cut within their first question or answer and '
        '7 answers of later turns are dropped, because data.sequence_length is 512; the longest '
        'example needs 1,900. Increase it, or make shorter examples: for dialogues about '
        'documents, lower --segment-tokens of the stage `documents`.'
    )
    assert describe_truncation(split, TokenCounts(2_996, 23_456, 789, 0, 90), 512) == ''

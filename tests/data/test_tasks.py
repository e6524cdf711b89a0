import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data import (
    Example,
    Task,
    exact_match,
    get_task,
    register_task,
    take_distinct,
    task_names,
)
from malora_jax.data.tasks import question_key
from malora_jax.errors import UserError


def test_a_misspelt_task_names_the_near_one():
    with pytest.raises(UserError, match=r"^Unknown task 'spel_backward': did you mean spell_back"):
        get_task('spel_backward')


def test_names_are_unique_and_sorted():
    assert task_names() == sorted(task_names())
    with pytest.raises(ValueError, match='already a task'):
        register_task(get_task('gcd'))


def test_registered_task_is_found(monkeypatch):
    monkeypatch.setattr('malora_jax.data.tasks._TASKS', {})
    task = Task('mine', None, exact_match)
    register_task(task)
    assert get_task('mine') is task
    assert task_names() == ['mine']


def test_exact_match_ignores_only_white_space_around():
    example = Example('?', '4 2', {})
    assert exact_match(' 4 2\n', example) == 1.0
    assert exact_match('42', example) == 0.0


@given(st.lists(st.text('aA b\n', max_size=4), max_size=30), st.integers(1, 8))
def test_take_distinct_keeps_the_first_of_each_or_raises(questions, count):
    draws = [Example(question, str(i), {}) for i, question in enumerate(questions)]
    keys = [question_key(question) for question in questions]
    firsts = [example for i, example in enumerate(draws) if keys[i] not in keys[:i]]
    if len(firsts) >= count:
        assert take_distinct('t', draws, count) == firsts[:count]
    else:
        with pytest.raises(UserError, match=f"Task 't' has only {len(firsts)} distinct questions"):
            take_distinct('t', draws, count)


def test_the_task_of_the_documentation(monkeypatch):
    monkeypatch.setattr('malora_jax.data.tasks._TASKS', {})
    text = (pathlib.Path(__file__).parents[2] / 'CONTRIBUTING.md').read_text('utf-8')
    [block] = [block for block in text.split('```') if 'class Squares' in block]
    exec(block.removeprefix('python\n'), {})
    split = get_task('squares').split(0, max_per_task=20, held_out=8)
    assert (len(split.train), len(split.held_out)) == (20, 8)
    assert [float(e.answer) ** 0.5 for e in split.train] == [
        int(e.question.split()[2]) for e in split.train
    ]
    assert split.task.scoring.score(split.train[0].answer, split.train[0]) == 1.0

import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data import ReasoningGymSource, get_task, task_names
from malora_jax.data import reasoning_gym_tasks as module
from malora_jax.errors import UserError
from tests.helpers.paths import ROOT

TASKS = sorted(module._SETTINGS)


def fingerprint() -> str:
    """Return a hash of some questions and answers of every task."""
    drawn = [get_task(name).source.examples(3, 50) for name in TASKS]
    text = repr([[(e.question, e.answer) for e in examples] for examples in drawn])
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize('name', TASKS)
def test_the_right_answer_scores_one_and_another_less(name):
    task = get_task(name)
    for example in task.source.examples(0, 200):
        assert task.score(example.answer, example) == 1.0
        assert task.score(f' {example.answer}\n', example) == 1.0
        assert task.score('no idea', example) < 1.0
        assert task.score('1' + example.answer, example) < 1.0


@pytest.mark.parametrize('name', TASKS)
def test_answers_of_other_questions_rarely_score_one(name):
    task = get_task(name)
    examples = task.source.examples(0, 200)
    pairs = list(itertools.pairwise(examples))
    same = sum(a.answer == b.answer for a, b in pairs)
    assert sum(task.score(b.answer, a) == 1.0 for a, b in pairs) == same


@pytest.mark.parametrize('name', TASKS)
def test_scores_are_in_the_unit_interval_whatever_the_model_says(name):
    task = get_task(name)
    # Drawn once, because each draw makes the dataset again.
    [example] = task.source.examples(0, 1)

    @given(st.text(max_size=12) | st.from_regex(r'-?[0-9./,: ]{0,8}( days)?|nan|inf'))
    def score(prediction):
        assert 0.0 <= task.score(prediction, example) <= 1.0

    score()


@pytest.mark.parametrize('name', TASKS)
def test_splits_are_short_distinct_disjoint_and_differ_between_seeds(name, capfd):
    task = get_task(name)
    first, again, other = (task.split(seed, 600, 64) for seed in (0, 0, 1))
    assert first == again
    questions = [e.question for e in first.held_out + first.train]
    assert len(set(questions)) == 664
    assert questions == [question.strip() for question in questions]
    assert max(len(question) for question in questions) < 350
    assert max(len(e.answer) for e in first.train) < 60
    shared = set(questions) & {e.question for e in other.held_out + other.train}
    assert len(shared) < 664 / 4
    assert capfd.readouterr() == ('', '')


def test_questions_do_not_depend_on_the_process():
    """Python's string hashes do depend on it, so a dataset that iterates over a set would fail."""
    code = 'from tests.data import test_reasoning_gym_tasks as t; print(t.fingerprint())'
    printed = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, 'PYTHONHASHSEED': '123'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == fingerprint()


def test_more_examples_continue_the_same_sequence():
    source = get_task('chain_sum').source
    assert source.examples(0, 100) == source.examples(0, 300)[:100]


def test_too_small_a_data_set_says_how_many_questions_there_are():
    source = ReasoningGymSource('chain_sum', {'max_terms': 2, 'max_digits': 1})
    with pytest.raises(UserError, match=r"'chain_sum' has only 200 distinct questions, but 1,000"):
        source.examples(0, 1_000)


@pytest.fixture
def uncached_import():
    module._reasoning_gym.cache_clear()
    yield
    module._reasoning_gym.cache_clear()


def test_without_pycosat_the_package_loads_all_the_same(monkeypatch, uncached_import):
    find_spec = importlib.util.find_spec
    hide = lambda name: None if name == 'pycosat' else find_spec(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, 'find_spec', hide)
    monkeypatch.delitem(sys.modules, 'pycosat', raising=False)
    for name in [name for name in sys.modules if name.startswith('reasoning_gym')]:
        monkeypatch.delitem(sys.modules, name)
    assert ReasoningGymSource('gcd', {}).examples(0, 1)


def test_a_missing_package_says_how_to_get_it(monkeypatch, uncached_import):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='make setup'):
        ReasoningGymSource('gcd', {}).examples(0, 1)


def test_the_table_is_registered():
    assert set(TASKS) <= set(task_names())
    assert len(TASKS) >= 5

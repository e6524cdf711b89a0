"""Reuse of the base model's answers from another run of the sweep."""

import json

import pytest

from malora_jax.sweeps import expand
from malora_jax.sweeps.base_answers import ANSWERS, copy_base_answers
from malora_jax.training.config import run_config
from malora_jax.training.prepare import data_digests
from tests.sweeps.helpers import ROOT, small_sweep_config


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    return {name: run.config for name, run in expand(small_sweep_config()).items()}


@pytest.fixture
def scored(runs, tmp_path):
    """Directory of a sweep in which one run has the base model's answers."""
    name = 'malora-learning_rate0.001-seed0'
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(runs[name]))
    (tmp_path / name / ANSWERS).write_text('{"score": 0.25}\n')
    return tmp_path


def test_another_learning_rate_has_the_same_base(runs, scored):
    name = 'malora-learning_rate0.01-seed0'
    assert copy_base_answers(scored, name, runs[name], {})
    assert (scored / name / ANSWERS).read_text() == '{"score": 0.25}\n'


@pytest.mark.parametrize(
    'section, field, value',
    [
        ('', 'seed', 1),
        ('model', 'dtype', 'bfloat16'),
        ('data', 'held_out', 63),
        ('evaluation', 'max_new_tokens', 8),
    ],
)
def test_other_questions_or_another_base_do_not(runs, scored, section, field, value):
    name = 'malora-learning_rate0.01-seed0'
    config = runs[name]
    (config[section] if section else config)[field] = value
    assert not copy_base_answers(scored, name, config, {})
    assert not (scored / name).exists()


def test_the_answers_that_a_run_has_stay(runs, scored):
    name = 'malora-learning_rate0.01-seed0'
    (scored / name).mkdir()
    (scored / name / ANSWERS).write_text('mine')
    assert copy_base_answers(scored, name, runs[name], {})
    assert (scored / name / ANSWERS).read_text() == 'mine'


def test_files_with_other_rows_do_not(tmp_path):
    from configs import your_tasks

    path = tmp_path / 'sums.jsonl'
    path.write_text('{"question": "1+1", "answer": "2"}\n')
    config = your_tasks.get_config().to_dict()
    config['data']['files'] = (str(path),)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'a' / 'data.json').write_text(json.dumps({str(path): 'another digest'}))
    (tmp_path / 'a' / ANSWERS).write_text('')
    digests = data_digests(run_config(config))
    assert not copy_base_answers(tmp_path, 'b', config, digests)

"""Scoring without training, and the table of scores."""

import pathlib
import re
import shutil

import pytest

import malora_jax
from configs import quickstart
from malora_jax.errors import UserError
from malora_jax.evaluation import runner
from malora_jax.evaluation.scores import Answer
from malora_jax.files import read_json_lines
from malora_jax.training.evaluate import evaluate
from malora_jax.training.results import format_evaluation, format_table
from tests.helpers.runs import STEPS, TASKS, toy_run_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


def content(directory: pathlib.Path) -> dict[str, tuple[bytes | None, int]]:
    """Return the content and modification time of every file and folder below a directory."""
    return {
        str(path.relative_to(directory)): (
            path.read_bytes() if path.is_file() else None,
            path.stat().st_mtime_ns,
        )
        for path in [directory, *directory.rglob('*')]
    }


def scores_of(results, when: str):
    """Return the expected result of `evaluate`, taken from the results of a run."""
    tasks = {
        name: {
            'metric': 'exact_match',
            'score': task[when],
            'interval': task[f'{when}_interval'],
            'more': {},
            'loss': task[f'loss_{when}'],
            'examples': task['examples'],
            'scoring': {
                **{'rule': 'exact_match', 'form': '', 'template': 'chatml', 'shots': 0},
                **{'decoding': 'greedy', 'stop': ()},
                'max_new_tokens': task['scoring']['max_new_tokens'],
            },
        }
        for name, task in results['tasks'].items()
    }
    return {
        'tasks': tasks,
        'average': pytest.approx(results['average'][when]),
        'average_interval': results['average_interval'][when],
    }


@pytest.fixture
def given(monkeypatch) -> list[Answer]:
    """Answers that `evaluate` scores; scores alone of two models may be equal by chance."""
    answers: list[Answer] = []

    def recorded(*arguments):
        answers.extend(original(*arguments))
        return answers

    original = runner.answer_held_out
    monkeypatch.setattr(runner, 'answer_held_out', recorded)
    return answers


def kept(workdir: pathlib.Path, when: str) -> list[Answer]:
    return [Answer(**row) for row in read_json_lines(workdir / f'answers_{when}.jsonl')]


def test_the_trained_adapter_scores_as_after_training_and_nothing_is_changed(
    finished_workdir, results, given, tiny_weights, tmp_path
):
    """Even a checkpoint that a training process is still writing stays unchanged."""
    workdir = tmp_path / 'run'
    shutil.copytree(finished_workdir, workdir)
    unfinished = workdir / 'checkpoints' / '3.orbax-checkpoint-tmp'
    (unfinished / 'state').mkdir(parents=True)
    (unfinished / 'state' / 'manifest.ocdbt').write_bytes(b'half')
    before = content(workdir)
    found = evaluate(toy_run_config(tiny_weights), workdir)
    assert found == {'step': STEPS, **scores_of(results, 'after')}
    assert list(found['tasks']) == list(TASKS)
    assert given == kept(finished_workdir, 'after')
    assert content(workdir) == before


def test_the_base_scores_as_before_training(finished_workdir, results, given, tiny_weights):
    found = evaluate(toy_run_config(tiny_weights), None)
    assert found == {'step': None, **scores_of(results, 'before')}
    assert given == kept(finished_workdir, 'before')


def refusal(config, workdir: pathlib.Path) -> str:
    before = content(workdir)
    with pytest.raises(UserError) as caught:
        evaluate(config, workdir)
    assert content(workdir) == before
    return str(caught.value)


def test_a_directory_without_a_run(tiny_weights, tmp_path):
    assert refusal(toy_run_config(tiny_weights), tmp_path) == (
        f'{tmp_path} holds no run: there is no {tmp_path / "config.json"}.'
    )


def test_another_config_may_have_trained_on_the_questions(finished_workdir, tiny_weights):
    assert refusal(toy_run_config(tiny_weights, data__held_out=7), finished_workdir) == (
        f'{finished_workdir} holds a run with another data.held_out: resume that one with its '
        'own config, or choose another --workdir.'
    )


@pytest.mark.parametrize('folder', [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint(
    finished_workdir, tiny_weights, tmp_path, folder
):
    shutil.copy(finished_workdir / 'config.json', tmp_path)
    if folder:
        (tmp_path / 'checkpoints').mkdir()
    message = f'There is no checkpoint in {tmp_path}/checkpoints: resume the training.'
    assert refusal(toy_run_config(tiny_weights), tmp_path) == message
    # The base model, which may be large, is not read first.
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        malora_jax.load(tmp_path, weights='missing.safetensors')


TABLE = """\
Exact match (%) of malora on tiny, held-out questions
---------------------------------------------------------------
task         before  constant  after    95% interval  questions
---------------------------------------------------------------
sum             0.0      12.5   99.9   [94.3, 100.0]         64
letter_race    33.3       1.6  100.0   [67.6, 100.0]          8
---------------------------------------------------------------
average        16.7       7.0   99.9  [100.0, 100.0]
---------------------------------------------------------------"""


def test_the_table_to_the_letter():
    results = {
        'method': 'malora',
        'model': 'tiny',
        'tasks': {
            'sum': {
                'metric': 'exact_match',
                'before': 0.0,
                'best_constant': 0.125,
                'after': 0.9987,
                'after_interval': [0.943, 1.0],
                'examples': 64,
            },
            'letter_race': {
                'metric': 'exact_match',
                'before': 1 / 3,
                'best_constant': 1 / 64,
                'after': 1,
                'after_interval': [0.676, 1.0],
                'examples': 8,
            },
        },
        'average': {'before': 1 / 6, 'best_constant': 0.0703, 'after': 0.99935},
        'average_interval': {'before': [0.1, 0.2], 'after': [0.9999, 1.0]},
    }
    assert [line.rstrip() for line in format_table(results).split('\n')] == TABLE.split('\n')
    results['tasks']['sum']['metric'] = 'choice'
    assert format_table(results).startswith('Right answers (%) of malora on tiny, ')


def test_the_table_of_results_without_intervals():
    results = {
        'method': 'lora',
        'model': 'tiny',
        'tasks': {
            'sum': {
                'metric': 'exact_match',
                'before': 0.0,
                'best_constant': 0.125,
                'after': 0.5,
                'examples': 64,
            }
        },
        'average': {'before': 0.0, 'best_constant': 0.125, 'after': 0.5},
    }
    assert 'sum         0.0      12.5   50.0                       64' in format_table(results)


EVALUATION_TABLE = """\
Exact match (%) of tiny, held-out questions
----------------------------------------
task     score   95% interval  questions
----------------------------------------
sum       99.9  [94.3, 100.0]         64
----------------------------------------
average   99.9  [94.3, 100.0]
----------------------------------------"""


def test_the_table_of_an_evaluation():
    scored = {'metric': 'exact_match', 'score': 0.9987, 'interval': [0.943, 1.0], 'examples': 64}
    evaluation = {'tasks': {'sum': scored}, 'average': 0.9987, 'average_interval': [0.943, 1.0]}
    table = format_evaluation(evaluation, 'tiny')
    assert [line.rstrip() for line in table.split('\n')] == EVALUATION_TABLE.split('\n')


def test_the_table_of_the_quickstart_fits_a_terminal():
    task = {
        **{'metric': 'exact_match', 'before': 1.0, 'best_constant': 1.0, 'after': 1.0},
        **{'after_interval': [1.0, 1.0], 'examples': 64},
    }
    results = {
        'method': 'malora',
        'model': 'smollm2-135m',
        'tasks': dict.fromkeys(quickstart.get_config().data.tasks, task),
        'average': task,
        'average_interval': {'after': [1.0, 1.0]},
    }
    assert max(map(len, format_table(results).split('\n'))) < 80

"""A complete run on public datasets from small local files: trained, scored, killed, resumed.

One task is trained and scored, one only trained, and three only scored.
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from malora_jax import training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.errors import UserError
from malora_jax.evaluation.likelihood import Likelihood, log_likelihoods
from malora_jax.evaluation.scores import Answer
from malora_jax.files import read_json_lines
from malora_jax.models import Decoder
from malora_jax.training.evaluate import evaluate
from malora_jax.training.restore import saved_model
from tests.helpers.benchmark_rows import ROWS
from tests.helpers.metric_records import without_times
from tests.helpers.paths import ROOT
from tests.helpers.runs import STEPS, toy_run_config

TRAINED = ('arc_easy', 'e2e_nlg')
SCORED = ('arc_easy', 'boolq', 'gsm8k', 'openbookqa')
HELD_OUT = 4
THINGS = ('sand', 'warm rain', 'dust', 'the open sea', 'a stone', 'mud', 'iron', 'old wool')


def options(number: int, letters: str) -> dict[str, Any]:
    texts = [THINGS[(number + i) % len(THINGS)] for i in range(len(letters))]
    return {'choices': {'text': texts, 'label': [*letters]}, 'answerKey': letters[number % 3]}


def solved(number: int) -> str:
    return f'Twice {number} is <<2*{number}={2 * number}>>{2 * number}.\n#### {2 * number}'


def attributes(number: int) -> dict[str, Any]:
    return {
        'meaning_representation': f'name[Aroma {number}], area[riverside]',
        'human_reference': f'Aroma {number} is a quiet place by the river.',
    }


# Number of rows of each file, and a function that makes row n.
FILES: dict[str, tuple[int, Any]] = {
    'arc_easy/train': (12, lambda n: {'question': f'Is {n} wet?'} | options(n, '123')),
    'arc_easy/test': (6, lambda n: {'question': f'Is it {n}?'} | options(n, 'ABCD'[: 3 + n % 2])),
    'e2e_nlg/train': (12, attributes),
    'boolq/test': (5, lambda n: {'question': f'is {n} a drink', 'answer': n % 2 == 0}),
    'gsm8k/train': (5, lambda n: {'question': f'What is twice {n}?', 'answer': solved(n)}),
    'gsm8k/test': (5, lambda n: {'question': f'And twice {n + 9}?', 'answer': solved(n + 9)}),
    'openbookqa/test': (5, lambda n: {'question_stem': f'Number {n} is'} | options(n, 'ABCD')),
}


def rows(place: str) -> list[dict[str, Any]]:
    count, own = FILES[place]
    return [ROWS[place.partition('/')[0]] | own(number) for number in range(count)]


class Public(NamedTuple):
    """Files of a run.

    Attributes:
        folder: Directory of the datasets' files.
        changes: Changes to the config of the tiny run.
        weights: GGUF file of the tiny model.
    """

    folder: pathlib.Path
    changes: dict[str, Any]
    weights: pathlib.Path

    @property
    def settings(self) -> dict[str, Any]:
        return toy_run_config(self.weights, **self.changes)

    def file(self, place: str) -> pathlib.Path:
        return self.folder / f'{place.replace("/", "-")}.jsonl'


pytestmark = [pytest.mark.slow(start_first=True), pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def public(tiny_weights, tmp_path_factory) -> Public:
    folder = tmp_path_factory.mktemp('public')
    changes = {
        'data__tasks': TRAINED,
        'data__directory': str(folder / 'store'),
        'data__task_settings': ('gsm8k.shots=2', 'openbookqa.form=sectioned'),
        'data__template': 'bare',
        'data__truncate': True,
        'data__held_out': HELD_OUT,
        'data__validation': 3,
        'training__evaluate_every': 3,
        'evaluation__tasks': SCORED,
    }
    files = Public(folder, changes, tiny_weights)
    for place in FILES:
        text = ''.join(json.dumps(row) + '\n' for row in rows(place))
        files.file(place).write_text(text, 'utf-8')
    changes['data__sources'] = tuple(f'{place}={files.file(place)}' for place in FILES)
    return files


@pytest.fixture(scope='module')
def workdir(public, tmp_path_factory) -> pathlib.Path:
    """Directory of an uninterrupted run; tests must not change it."""
    workdir = tmp_path_factory.mktemp('public_run') / 'run'
    training.train(public.settings, workdir, write_run_plots)
    return workdir


@pytest.fixture
def results(workdir) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f'{constant} is not JSON')

    return json.loads((workdir / 'results.json').read_text('utf-8'), parse_constant=refuse)


def answers(workdir: pathlib.Path, when: str, task: str) -> list[Answer]:
    every = [Answer(**row) for row in read_json_lines(workdir / f'answers_{when}.jsonl')]
    assert list(dict.fromkeys(answer.task for answer in every)) == list(SCORED)
    return [answer for answer in every if answer.task == task]


def test_what_is_scored_has_results(results):
    assert list(results['tasks']) == list(SCORED)
    for task in results['tasks'].values():
        assert task['examples'] == HELD_OUT
        assert 0 < task['loss_before'] < 20 and 0 < task['loss_after'] < 20
        for when in ('before', 'after'):
            low, high = task[f'{when}_interval']
            assert 0 <= low <= task[when] <= high <= 1
            assert low < high
    metrics = {name: task['metric'] for name, task in results['tasks'].items()}
    assert metrics == {
        **dict.fromkeys(['arc_easy', 'boolq', 'openbookqa'], 'accuracy'),
        'gsm8k': 'accuracy',
    }
    for when in ('before', 'after'):
        mean = np.mean([task[when] for task in results['tasks'].values()])
        assert results['average'][when] == pytest.approx(mean)
        low, high = results['average_interval'][when]
        assert low <= mean <= high


def test_how_it_was_scored_stands_beside_it(results):
    likelihood = {
        **{'rule': 'likelihood', 'form': 'completion', 'template': 'bare', 'shots': 0},
        'normalized_by': 'characters of the option',
    }
    greedy = {'template': 'bare', 'decoding': 'greedy'}
    assert {name: task['scoring'] for name, task in results['tasks'].items()} == {
        'arc_easy': likelihood,
        'boolq': likelihood,
        'gsm8k': {
            **{'rule': 'number', 'form': 'completion', 'shots': 2, **greedy},
            **{'max_new_tokens': 300, 'stop': ['\nQuestion:']},
        },
        'openbookqa': {
            **{'rule': 'letter', 'form': 'sectioned', 'shots': 0, **greedy},
            **{'max_new_tokens': 8, 'stop': ['\n']},
        },
    }


def test_what_is_trained_on_is_described(public, workdir, results):
    assert list(results['training_data']) == list(TRAINED)
    last = read_json_lines(workdir / 'metrics.jsonl')[-1]
    for name, found in results['training_data'].items():
        # Three of the twelve examples are kept for validation.
        assert (found['examples'], found['available']) == (9, 12)
        assert found['epochs'] == last[f'examples/{name}'] / 9
        assert found['dataset']['rows']['train'] == 12
        assert f'train={public.file(f"{name}/train")}' in found['dataset']['source']
    short, long = (results['training_data'][name] for name in TRAINED)
    assert short['truncated'] == 0 and short['tokens'] <= 9 * short['longest'] < 9 * 96
    assert long['truncated'] == 9 and long['tokens'] == 9 * 96 < 9 * long['longest']
    assert all(0 < found['answer_tokens'] < found['tokens'] for found in (short, long))


def test_only_what_is_trained_on_has_a_loss_by_step(workdir, results):
    records = read_json_lines(workdir / 'metrics.jsonl')
    assert [record['step'] for record in records] == list(range(1, STEPS + 1))
    for kind in ('loss', 'examples', 'validation_loss'):
        named = {key for record in records for key in record if key.startswith(f'{kind}/')}
        assert named == {f'{kind}/{task}' for task in TRAINED}
    assert [each['step'] for each in results['validation_curve']] == [3, 6]
    assert all({*each['by_task']} == {*TRAINED} for each in results['validation_curve'])
    drawn = [records[-1][f'examples/{task}'] for task in TRAINED]
    assert min(drawn) > 0
    assert records[-1]['epoch'] == sum(drawn) / 18


def test_the_load_of_the_experts_is_drawn(workdir):
    assert (workdir / 'expert_load.png').read_bytes().startswith(b'\x89PNG\r\n')


@pytest.mark.parametrize('when', ['before', 'after'])
def test_scores_are_the_means_of_the_answers(workdir, results, when):
    for name, task in results['tasks'].items():
        given = answers(workdir, when, name)
        assert len(given) == HELD_OUT
        assert task[when] == pytest.approx(np.mean([answer.score for answer in given]))
        by_likelihood = task['scoring']['rule'] == 'likelihood'
        for answer in given:
            assert {*answer.more} == ({'accuracy_normalized'} if by_likelihood else set())


@pytest.fixture(scope='module')
def likelihoods(workdir) -> Callable[..., list[Likelihood]]:
    """Function that returns likelihoods of texts.

    The model is the base model ('before') or the best checkpoint ('after').
    """
    run = saved_model(workdir).load()
    models = {
        'before': (Decoder(run.model.config), {'params': run.base.params}),
        'after': (run.model, run.variables),
    }
    encode, end = run.base.tokenizer.encode, run.base.tokenizer.eos_id

    def find(when: str, texts: Sequence[tuple[str, str]], ended: bool) -> list[Likelihood]:
        requests = [
            (encode(prompt), encode(text, continues=True) + [end] * ended) for prompt, text in texts
        ]
        return log_likelihoods(*models[when], requests, batch_size=1, pad_multiple=256)

    return find


@pytest.mark.parametrize('when', ['before', 'after'])
def test_options_are_taken_by_their_likelihood(workdir, results, likelihoods, when):
    """All likelihoods are computed again, from the rows of the file."""
    asked = {f'Question: {row["question"]}\nAnswer:': row for row in rows('arc_easy/test')}
    normalized = []
    for answer in answers(workdir, when, 'arc_easy'):
        row = asked.pop(answer.question)
        texts, right = row['choices']['text'], row['choices']['label'].index(row['answerKey'])
        found = likelihoods(when, [(answer.question, f' {text}') for text in texts], ended=False)
        nats = np.array([each.log_probability for each in found])
        taken = int(nats.argmax())
        assert (answer.expected, answer.answer) == (f' {texts[right]}', f' {texts[taken]}')
        assert answer.score == (taken == right)
        normalized.append((nats / [len(text) for text in texts]).argmax() == right)
        assert answer.more == {'accuracy_normalized': normalized[-1]}
    more = results['tasks']['arc_easy'][f'more_{when}']['accuracy_normalized']
    assert more['score'] == np.mean(normalized)
    assert more['interval'][0] <= more['score'] <= more['interval'][1]


@pytest.mark.parametrize('when', ['before', 'after'])
def test_the_loss_is_that_of_whole_answers(workdir, results, likelihoods, when):
    """The loss follows whole prompts: those with shots are longer than training rows."""
    for name, task in results['tasks'].items():
        given = answers(workdir, when, name)
        found = likelihoods(when, [(a.question, a.expected) for a in given], ended=True)
        nats, tokens, _ = zip(*found, strict=True)
        assert tuple(answer.tokens for answer in given) == tokens
        np.testing.assert_allclose([-answer.nats for answer in given], nats, atol=1e-3)
        assert task[f'loss_{when}'] == pytest.approx(-sum(nats) / sum(tokens), rel=1e-4)


def test_the_base_and_the_trained_model_find_other_likelihoods(workdir):
    nats = [[a.nats for a in answers(workdir, when, 'arc_easy')] for when in ('before', 'after')]
    assert not np.isclose(*nats, rtol=0, atol=1e-3).any()


def test_shots_are_solved_examples_of_the_training_split(workdir):
    starts = set()
    for answer in answers(workdir, 'after', 'gsm8k'):
        *shots, question = answer.question.split('\n\n')
        starts.add(tuple(shots))
        assert re.fullmatch(r'Question: And twice \d+\?\nAnswer:', question)
    (shots,) = starts
    known = [f'Question: {row["question"]}\nAnswer: {row["answer"]}' for row in rows('gsm8k/train')]
    assert len({*shots}) == 2 and {*shots} <= {*known}


def test_letters_are_asked_for_and_written(workdir):
    for answer in answers(workdir, 'after', 'openbookqa'):
        assert answer.question.startswith('Question:\nNumber ')
        assert '\nOptions:\n(A) ' in answer.question and answer.question.endswith('\nAnswer:\n')
        assert answer.expected in ('(A)', '(B)', '(C)')


def test_evaluation_finds_the_same_scores(public, workdir, results):
    found = json.loads(json.dumps(evaluate(public.settings, workdir)))
    assert found['step'] == results['best_step']
    assert list(found['tasks']) == list(SCORED)
    for name, task in results['tasks'].items():
        assert found['tasks'][name] == {
            **{key: task[key] for key in ('metric', 'examples', 'scoring')},
            'score': task['after'],
            'interval': task['after_interval'],
            'more': task['more_after'],
            'loss': task['loss_after'],
        }
    assert found['average'] == results['average']['after']
    assert found['average_interval'] == results['average_interval']['after']


@pytest.fixture(scope='module')
def killed(public, tmp_path_factory) -> pathlib.Path:
    """Directory of a run that was killed when step 4 was saved; tests must not change it."""
    workdir = tmp_path_factory.mktemp('public_killed') / 'run'
    arguments = [public.weights, workdir, '4', 'malora', json.dumps(public.changes), '--saved']
    environment = {**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}  # As in this process.
    command = [sys.executable, '-m', 'tests.helpers.runs', *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (workdir / 'results.json').exists()
    assert len(read_json_lines(workdir / 'metrics.jsonl')) == 4
    return workdir


def test_killed_and_resumed_equals_uninterrupted(public, workdir, results, killed, tmp_path):
    resumed = tmp_path / 'run'
    shutil.copytree(killed, resumed)
    found = training.train(public.settings, resumed)
    records, whole = (read_json_lines(path / 'metrics.jsonl') for path in (resumed, workdir))
    # Losses are bitwise equal, and so are the numbers of examples drawn for each task.
    assert without_times(records) == without_times(whole)
    for key in ('tasks', 'average', 'training_data', 'best_step', 'validation_curve'):
        assert json.loads(json.dumps(found[key])) == results[key]


@pytest.fixture
def changed(public):
    """Change a row of the training split, and restore everything afterwards."""
    path, store = public.file('arc_easy/train'), public.folder / 'store'
    content = path.read_bytes()
    shutil.copytree(store, public.folder / 'kept')
    path.write_bytes(content.replace(b'Is 0 wet?', b'Is 0 dry?'))
    assert path.read_bytes() != content
    yield path
    path.write_bytes(content)
    shutil.rmtree(store)
    (public.folder / 'kept').rename(store)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('command', [training.train, evaluate])
def test_a_file_that_is_not_the_prepared_one_is_refused(public, killed, changed, command):
    before = (killed / 'metrics.jsonl').read_bytes()
    lock = public.folder / 'store' / 'malora_jax.lock.json'
    message = refusal(command, public.settings, killed)
    assert message.startswith(f'arc_easy/train is not what {lock} says (sha256 ')
    assert message.endswith(
        "): restore its files, or remove 'arc_easy' from the lock file to prepare it again."
    )
    assert (killed / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('command', [training.train, evaluate])
def test_a_file_that_was_prepared_anew_is_refused(public, killed, changed, command):
    """The store has no record of the old file, but the run does."""
    shutil.rmtree(public.folder / 'store')
    assert refusal(command, public.settings, killed) == (
        f'arc_easy has changed since the run in {killed} was started: restore it, or choose '
        'another --workdir.'
    )


def test_no_number_is_missing(workdir):
    """A task without examples in a step has no loss in the record, instead of NaN."""
    for record in read_json_lines(workdir / 'metrics.jsonl'):
        assert all(math.isfinite(value) for value in record.values())

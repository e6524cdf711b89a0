"""Choosing the best checkpoint of a run whose loss rises again, due to a high learning rate."""

import dataclasses
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from malora_jax import training
from malora_jax.adapters import trees
from malora_jax.data import encode_example, get_task
from malora_jax.evaluation.scores import Answer
from malora_jax.files import read_json, read_json_lines
from malora_jax.models import Decoder
from malora_jax.training import run_config
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.evaluate import evaluate
from malora_jax.training.run_progress import check_finite
from malora_jax.training.setup import build_setup
from malora_jax.training.validation import evaluations_without_progress, validation_curve
from tests.helpers.metric_records import without_times
from tests.helpers.models import logits_of
from tests.helpers.paths import ROOT
from tests.helpers.runs import TASKS, toy_run_config

pytestmark = [
    pytest.mark.slow(start_first=True),
    pytest.mark.usefixtures('compile_quickly', 'commands_compile_quickly'),
]
CHANGES = dict(
    data__validation=5,
    # The learning rate rises until the last step. Once it is above 1 / weight_decay, each step
    # overshoots zero, so the loss is lowest early, by a wide margin that rounding cannot change.
    optimizer__learning_rate=0.3,
    optimizer__warmup_ratio=0.99,
    optimizer__weight_decay=15.0,
    training__steps=7,
    training__evaluate_every=1,
    training__checkpoint_every=3,
    training__keep_checkpoints=1,
)
STEPS = CHANGES['training__steps']


def settings(weights: pathlib.Path, **changes: Any) -> dict[str, Any]:
    return toy_run_config(weights, 'lora', **CHANGES, **changes)


@pytest.fixture(scope='module')
def chosen(tiny_weights, tmp_path_factory) -> pathlib.Path:
    """Directory of an uninterrupted run; tests must not change it."""
    workdir = tmp_path_factory.mktemp('chosen') / 'run'
    training.train(settings(tiny_weights), workdir)
    return workdir


@pytest.fixture(scope='module')
def setup(tiny_weights):
    return build_setup(run_config(settings(tiny_weights)))


def results_of(workdir: pathlib.Path):
    return json.loads((workdir / 'results.json').read_text('utf-8'))


def records_of(workdir: pathlib.Path):
    return read_json_lines(workdir / 'metrics.jsonl')


def steps_saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def state_of(setup, workdir: pathlib.Path, step: int):
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        return checkpoints.restore_state(setup.fresh_state(), step)


def lowest(losses: list[float]) -> int:
    """Return the step, from 1, of the lowest loss, which must be neither the first nor the last."""
    step = int(np.argmin(losses)) + 1
    assert 1 < step < len(losses) - 1
    return step


def loss_by_hand(setup, variables, examples) -> float:
    """Return the answer loss (nats per token) in float64, with each example in its own row."""
    total = tokens = 0.0
    for example in examples:
        encoded = encode_example(setup.base.tokenizer, setup.template, example, 0, 96)
        length = len(encoded['inputs'])
        inputs = np.pad(encoded['inputs'], (0, 96 - length))[None]  # One shape, so one compilation.
        logits = np.float64(logits_of(setup.model, variables, inputs)[0, :length])
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        nll = -log_probs[np.arange(length), encoded['targets']]
        total += (nll * encoded['loss_mask']).sum()
        tokens += encoded['loss_mask'].sum()
    return total / tokens


def test_the_best_checkpoint_stays_and_is_the_one_that_is_scored(chosen, setup):
    losses = [record['validation_loss'] for record in records_of(chosen)]
    best, results = lowest(losses), results_of(chosen)
    assert steps_saved(chosen) == [best, STEPS]
    assert results['steps'] == STEPS
    assert (results['best_step'], results['validation_loss']) == (best, losses[best - 1])
    for step in (best, STEPS):
        state = state_of(setup, chosen, step)
        assert int(state.step) == step
        variables, record = state.variables(setup.base.params), records_of(chosen)[step - 1]
        for split in setup.splits:
            found = record[f'validation_loss/{split.task_name}']
            assert found == pytest.approx(loss_by_hand(setup, variables, split.validation), 1e-5)
        by_task = [record[f'validation_loss/{name}'] for name in TASKS]
        assert record['validation_loss'] == pytest.approx(np.mean(by_task), 1e-6)
    variables = state_of(setup, chosen, best).variables(setup.base.params)
    answers = [Answer(**row) for row in read_json_lines(chosen / 'answers_after.jsonl')]
    assert answers == setup.answer_held_out(variables, 'test')
    base = {'params': setup.base.params}
    alone = dataclasses.replace(setup, model=Decoder(setup.run.model))
    for split in setup.splits:
        task = results['tasks'][split.task_name]
        after = loss_by_hand(setup, variables, split.held_out)
        assert task['loss_after'] == pytest.approx(after, 1e-5)
        before = loss_by_hand(alone, base, split.held_out)
        assert task['loss_before'] == pytest.approx(before, 1e-5)


def test_the_curve_is_in_the_results(chosen):
    found = results_of(chosen)['validation_curve']
    assert [point['step'] for point in found] == list(range(1, STEPS + 1))
    for point, record in zip(found, records_of(chosen), strict=True):
        assert point['loss'] == record['validation_loss']
        assert point['by_task'] == {name: record[f'validation_loss/{name}'] for name in TASKS}


def test_evaluate_scores_the_best_and_says_so(chosen, tiny_weights):
    found, results = evaluate(settings(tiny_weights), chosen), results_of(chosen)
    assert found['step'] == results['best_step'] < STEPS
    scores = {name: task['score'] for name, task in found['tasks'].items()}
    assert scores == {name: task['after'] for name, task in results['tasks'].items()}


def test_validation_examples_are_neither_trained_on_nor_scored(setup):
    for split in setup.splits:
        parts = [{e.question for e in part} for part in (split.train, split.held_out)]
        validation = {example.question for example in split.validation}
        assert len(validation) == 5
        assert not any(part & validation for part in parts)
        # The held-out questions are the same as without a validation part.
        alone = get_task(split.task_name).split(0, 30, 6)
        assert alone.held_out == split.held_out


def assert_same_run(workdir: pathlib.Path, expected: pathlib.Path, setup) -> None:
    assert without_times(records_of(workdir)) == without_times(records_of(expected))
    assert steps_saved(workdir) == steps_saved(expected)
    found, results = results_of(workdir), results_of(expected)
    for key in ('tasks', 'steps', 'best_step', 'validation_loss', 'validation_curve', 'routing'):
        assert found[key] == results[key], key
    for step in steps_saved(expected):
        states = (state_of(setup, directory, step) for directory in (workdir, expected))
        leaves = (trees.named_leaves(state) for state in states)
        for (path, a), (_, b) in zip(*leaves, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=path)


def test_killed_when_the_best_is_saved_and_resumed_equals_uninterrupted(
    chosen, setup, tiny_weights, tmp_path
):
    best = results_of(chosen)['best_step']
    command = [sys.executable, '-m', 'tests.helpers.runs']
    arguments = [tiny_weights, tmp_path, str(best), 'lora', json.dumps(CHANGES), '--saved']
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_saved(tmp_path) == [best]
    training.train(settings(tiny_weights), tmp_path)
    assert_same_run(tmp_path, chosen, setup)


# Early stopping.


@pytest.fixture(scope='module')
def stopped(tiny_weights, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp('stopped') / 'run'
    training.train(settings(tiny_weights, training__patience=2), workdir)
    return workdir


def test_a_run_stops_when_patience_is_out(chosen, stopped):
    best = results_of(chosen)['best_step']
    assert best + 2 < STEPS
    assert without_times(records_of(stopped)) == without_times(records_of(chosen)[: best + 2])
    results = results_of(stopped)
    assert (results['steps'], results['best_step']) == (best + 2, best)
    assert results['tasks'] == results_of(chosen)['tasks']
    assert steps_saved(stopped) == [best, best + 2]


def test_a_run_that_stopped_and_was_killed_before_it_was_scored_trains_no_further(
    stopped, tiny_weights, tmp_path, monkeypatch
):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped, workdir)
    for name in ('results.json', 'answers_after.jsonl'):
        (workdir / name).unlink()
    monkeypatch.setattr(training.train_loop.step, 'make_train_step', None)
    training.train(settings(tiny_weights, training__patience=2), workdir)
    assert records_of(workdir) == records_of(stopped)
    assert results_of(workdir)['tasks'] == results_of(stopped)['tasks']


def test_with_more_patience_a_run_that_stopped_continues(chosen, stopped, tiny_weights, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / 'run')
    training.train(settings(tiny_weights, training__patience=STEPS), workdir)
    assert without_times(records_of(workdir)) == without_times(records_of(chosen))
    assert results_of(workdir)['tasks'] == results_of(chosen)['tasks']
    assert read_json(workdir / 'earlier' / '1' / 'results.json') == results_of(stopped)


@pytest.mark.parametrize(
    'losses, expected',
    [
        ([], 0),
        ([3.0], 0),
        ([3.0, 2.0], 0),
        ([2.0, 3.0, 4.0], 2),
        ([2.0, 2.0], 1),
        ([3, 1, 2, 0], 0),
    ],
)
def test_evaluations_since_the_lowest_loss(losses, expected):
    records = [{'step': 2 * i, 'validation_loss': loss} for i, loss in enumerate(losses)]
    records += [{'step': 99, 'loss': 0.0}]
    assert evaluations_without_progress(records) == expected


def test_a_curve_has_the_steps_that_were_evaluated():
    records = [{'step': 1, 'loss': 3.0}, {'step': 2, 'validation_loss': 2.0}]
    records[1]['validation_loss/a/b'] = 2.0
    assert validation_curve(records) == [{'step': 2, 'loss': 2.0, 'by_task': {'a/b': 2.0}}]


@pytest.mark.parametrize('name', ['loss', 'gradient_norm', 'validation_loss'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_what_is_not_finite_stops_the_run(name, value):
    record = {'step': 3, 'loss': 1.0, 'gradient_norm': 2.0}
    check_finite(record)
    with pytest.raises(
        FloatingPointError, match=f'The {name} is {value} at step 3, which was not sa'
    ):
        check_finite(record | {name: value})

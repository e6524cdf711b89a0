"""Faults during a run: SIGTERM, losses that are not finite, another base model."""

import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from malora_jax import training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.errors import UserError
from malora_jax.files import read_json_lines
from malora_jax.training import goodput, metrics, step
from malora_jax.training.preemption import Preempted
from tests.helpers.paths import ROOT
from tests.helpers.runs import STEPS, toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures('compile_quickly', 'commands_compile_quickly'),
]


@pytest.fixture
def signalled(monkeypatch):
    """Function that sends this process SIGTERM while a step's record is written."""

    def at(number: int) -> None:
        original = metrics.MetricWriter.write

        def write(self, record):
            original(self, record)
            if record['step'] == number:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(metrics.MetricWriter, 'write', write)

    yield at
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, 'as it was before'


def test_sigterm_saves_the_step_at_work_and_the_same_command_goes_on(
    tiny_weights, tmp_path, finished_workdir, signalled, monkeypatch, capsys
):
    """Step 3 is recorded while step 4 runs, which is then finished, saved, and not repeated."""
    settings, workdir = (
        toy_run_config(tiny_weights, training__checkpoint_every=100),
        tmp_path / 'run',
    )
    signalled(3)
    with pytest.raises(Preempted) as caught:
        training.train(settings, workdir)
    assert caught.value.code == 0
    steps = [record['step'] for record in read_json_lines(workdir / 'metrics.jsonl')]
    assert steps == list(range(1, steps[-1] + 1))
    assert 3 <= steps[-1] <= 4
    assert f'Stopped by SIGTERM after step {steps[-1]}, which is saved.' in capsys.readouterr().out
    assert [path.name for path in (workdir / 'checkpoints').iterdir()] == [str(steps[-1])]
    monkeypatch.undo()
    training.train(settings, workdir)
    losses = [record['loss'] for record in read_json_lines(workdir / 'metrics.jsonl')]
    assert losses == [
        record['loss'] for record in read_json_lines(finished_workdir / 'metrics.jsonl')
    ]
    spent = goodput.seconds_by_activity(goodput.read(workdir))
    assert spent['lost'] == 0
    assert spent['stopped'] > 0
    assert spent['step'] > 0
    assert 'Goodput ' in capsys.readouterr().out


def test_sigterm_before_the_first_step_ends_the_process_with_status_0(tmp_path):
    """The signal may arrive during compilation, which it cannot interrupt, or earlier."""
    weights = tmp_path / 'tiny.gguf'
    write_tiny_gguf(weights)
    command = [sys.executable, '-m', 'tests.helpers.runs', weights, tmp_path / 'run', '99']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()  # Printed before compilation.
        assert 'trained parameters' in line
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert 'Stopped by SIGTERM' in rest or (tmp_path / 'run' / 'checkpoints').is_dir()


def test_sigterm_in_the_last_step_ends_before_scoring(tiny_weights, tmp_path, signalled):
    workdir = tmp_path / 'run'
    signalled(STEPS)
    with pytest.raises(Preempted):
        training.train(toy_run_config(tiny_weights), workdir)
    assert (workdir / 'checkpoints' / str(STEPS)).is_dir()
    assert not list(workdir.glob('answers_*'))


def test_a_run_in_a_thread_listens_to_nothing(tiny_weights, tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(training.train(toy_run_config(tiny_weights), tmp_path / 'run'))
    )
    thread.start()
    thread.join()
    assert found[0]['steps'] == STEPS


# Losses that are not finite.


def poisoned(numbers):
    """Make some calls of the step get loss weights that are NaN."""
    original = step.make_train_step

    def make(*args, **options):
        made = original(*args, **options)

        class Poisoned:
            def lower(self, *shapes):
                compiled = made.lower(*shapes).compile()

                def call(state, params, batch, hyperparameters):
                    if int(state.step) + 1 in numbers:
                        batch = {**batch, 'loss_mask': batch['loss_mask'] * np.float32(math.nan)}
                    return compiled(state, params, batch, hyperparameters)

                return type('', (), {'compile': lambda self: call})()

        return Poisoned()

    return make


def test_steps_that_are_not_finite_are_left_out_up_to_a_limit(tiny_weights, tmp_path, monkeypatch):
    settings = toy_run_config(tiny_weights, training__skip_nonfinite=2)
    monkeypatch.setattr(step, 'make_train_step', poisoned({2, 4, 5}))
    training.train(settings, tmp_path / 'run', write_run_plots)
    records = read_json_lines(tmp_path / 'run' / 'metrics.jsonl')
    assert [record['skipped'] for record in records] == [0, 1, 0, 1, 1, 0]
    for record in records:
        assert ('loss' in record) != bool(record['skipped'])
        json.dumps(record, allow_nan=False)
    assert (tmp_path / 'run' / 'loss.png').exists()


def test_one_too_many_stops_the_run_and_nothing_poisoned_is_saved(
    tiny_weights, tmp_path, monkeypatch
):
    settings = toy_run_config(tiny_weights, training__skip_nonfinite=2)
    monkeypatch.setattr(step, 'make_train_step', poisoned({3, 4, 5, 6}))
    with pytest.raises(FloatingPointError) as caught:
        training.train(settings, tmp_path / 'run')
    assert str(caught.value) == (
        '3 steps in a row, up to step 5, had a loss or gradient that is not finite; '
        'training.skip_nonfinite allows 2.'
    )
    steps = sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir())
    assert steps == ['2', '4'], 'step 4 holds what step 2 left'


# Another base model.


def test_a_run_does_not_go_on_with_another_base(tiny_weights, tmp_path):
    """The message names both base models; the check compares contents, not paths."""
    weights = tmp_path / 'base.gguf'
    weights.write_bytes(tiny_weights.read_bytes())
    settings, workdir = toy_run_config(weights), tmp_path / 'run'
    training.train(settings, workdir)
    (workdir / 'results.json').unlink()
    write_tiny_gguf(weights, seed=1)
    with pytest.raises(UserError) as caught:
        training.train(settings, workdir)
    base = json.loads((workdir / 'base.json').read_text())
    message = str(caught.value)
    assert message.startswith(
        f'{workdir} was trained on the base model {weights} ({base["fingerprint"]})'
    )
    assert f'but these weights are {weights} (' in message
    assert message.count(base['fingerprint']) == 1

"""Whole commands that receive signals: exit status, last line of output, and saved state."""

import importlib.util
import json
import os
import signal
import sys
import time

import pytest

import experiments
from malora_jax.files import read_json_lines
from tests.helpers.signals import (
    SWEEP_RUN_NAMES,
    RunningCommand,
    is_unlocked,
    make_home,
    newest_checkpoint,
    steps_made,
    sweep_arguments,
)

pytestmark = pytest.mark.slow(start_first=True)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Directory whose runs take far longer than any test."""
    return make_home(tmp_path_factory.mktemp('home'), 3000, 1000, 0)


def arguments(home, name):
    return f'--config={home}/base.py', f'--workdir={home}/{name}'


@pytest.fixture(scope='module')
def stopped(home):
    """Exit status and output of a run that got SIGTERM repeatedly until it ended."""
    with RunningCommand('train', *arguments(home, 'stopped')) as command:
        command.wait_for(lambda: steps_made(home / 'stopped') >= 2)
        command.send(signal.SIGTERM, times=10_000, pause=0.002)
        return command.wait(), command.stdout


def test_sigterm_while_a_command_is_imported(home, tmp_path):
    with RunningCommand(
        'train', f'--config={home}/base.py', f'--workdir={tmp_path}/run'
    ) as command:
        deadline = time.monotonic() + 0.5
        while not command.handles_sigterm() and time.monotonic() < deadline:
            time.sleep(0.001)
        command.send(signal.SIGTERM)
        assert command.wait() == 0
        assert (
            command.stdout == 'Stopped by SIGTERM; the same command resumes from what was saved.\n'
        )
        assert not command.stderr
    assert not (tmp_path / 'run').exists()


def test_signals_while_the_process_exits(home):
    """If the interpreter exits normally, Python resets the handlers during the exit."""
    for _ in range(3):
        with RunningCommand('train', '--help') as command:
            command.wait_for(lambda: command.stdout)
            command.send(signal.SIGTERM, times=10_000, pause=0.001)
            assert command.wait() == 0
            assert not command.stderr


def test_many_sigterms_end_a_run_once_with_its_last_step_saved(home, stopped):
    status, out = stopped
    step = steps_made(home / 'stopped')
    assert status == 0
    assert f'Stopped by SIGTERM after step {step}, which is saved.' in out
    assert newest_checkpoint(home / 'stopped') == step


def test_many_ctrl_cs_end_a_run_with_one_line(home):
    with RunningCommand('train', *arguments(home, 'interrupted')) as command:
        command.wait_for(lambda: steps_made(home / 'interrupted') >= 2)
        command.send(signal.SIGINT, times=10_000, pause=0.002)
        assert command.wait() == 130
        assert command.stderr.count('Interrupted') == 1
        assert command.stderr.endswith(
            'Interrupted; the same command resumes from what was saved.\n'
        )


def test_an_evaluation_that_is_stopped_does_not_claim_to_have_scored(home, stopped):
    with RunningCommand('evaluate', *arguments(home, 'stopped')) as command:
        command.wait_for(lambda: 'score' in command.stderr)
        command.send(signal.SIGTERM, times=10_000, pause=0.002)
        assert command.wait() == 143
        assert not command.stdout
        assert command.stderr.endswith('Stopped by SIGTERM; the same command starts again.\n')


def test_answers_to_a_file_are_kept_and_the_same_command_resumes(home, stopped):
    output, partial = home / 'answers.jsonl', home / 'answers.jsonl.partial'
    given = (f'--workdir={home}/stopped', f'--input={home}/prompts.jsonl', f'--output={output}')
    more = ('--batch_size=1', '--max_new_tokens=40')
    with RunningCommand('generate', *given, *more) as command:
        command.wait_for(lambda: partial.exists() and len(read_json_lines(partial)) > 2)
        command.send(signal.SIGTERM, times=10_000, pause=0.002)
        assert command.wait() == 0
    assert not output.exists()
    kept = read_json_lines(partial)[1:]
    with RunningCommand('generate', *given, *more) as command:
        assert command.wait() == 0, command.stderr
        assert f'{12 - len(kept)} answers' in command.stdout
    rows = read_json_lines(output)
    assert [row['prompt'] for row in rows] == [f'{n} + 2?' for n in range(12)]
    assert {json.dumps(row['answer']) for row in kept} <= {
        json.dumps(row['answer']) for row in rows
    }


@pytest.mark.parametrize('together', [1, 2])
def test_the_processes_of_a_sweep_end_with_it(home, together):
    """They end even if the sweep is killed, and save their progress."""
    workdir = home / f'sweep{together}'
    runs = [workdir / name for name in SWEEP_RUN_NAMES]
    with RunningCommand(
        'sweep', *sweep_arguments(home, workdir, together=together, jobs=3 - together)
    ) as command:
        command.wait_for(lambda: all(steps_made(run) >= 2 for run in runs))
        command.process.kill()
        deadline = time.monotonic() + 100
        while not all(map(is_unlocked, runs)):
            assert time.monotonic() < deadline, 'The runs go on.'
            time.sleep(0.05)
    for run in runs:
        assert 2 <= steps_made(run) == newest_checkpoint(run) < 3000
        assert not (run / 'results.json').exists()
    log = (workdir / 'sweep' / 'logs' / f'{SWEEP_RUN_NAMES[0]}.txt').read_text()
    assert 'The process that started this one has ended.' in log
    assert 'which is saved.' in log


def test_ctrl_c_in_a_terminal_stops_a_sweep_whose_runs_save(home):
    """A terminal sends SIGINT to the whole process group."""
    workdir = home / 'interrupted_sweep'
    runs = [workdir / name for name in SWEEP_RUN_NAMES]
    with RunningCommand('sweep', *sweep_arguments(home, workdir, together=2)) as command:
        command.wait_for(lambda: all(steps_made(run) >= 2 for run in runs))
        os.killpg(command.process.pid, signal.SIGINT)
        assert command.wait() == 130
        assert command.stderr == 'Interrupted; the same command resumes from what was saved.\n'
    for run in runs:
        assert steps_made(run) == newest_checkpoint(run)


def test_many_sigterms_stop_a_sweep_and_its_runs_with_status_0(home):
    workdir = home / 'stopped_sweep'
    runs = [workdir / name for name in SWEEP_RUN_NAMES]
    with RunningCommand('sweep', *sweep_arguments(home, workdir, together=2)) as command:
        command.wait_for(lambda: all(steps_made(run) >= 2 for run in runs))
        command.send(signal.SIGTERM, times=20_000, pause=0.002)
        assert command.wait() == 0
        assert command.stdout.endswith('resumes from what was saved.\n')
    for run in runs:
        assert is_unlocked(run)
        assert steps_made(run) == newest_checkpoint(run)


def test_commands_that_resume(monkeypatch):
    for name in experiments._RESUMABLE:
        command, *stage = name.split()
        assert importlib.util.find_spec(f'experiments.{command}'), name
        for glued in (['-m', f'experiments.{command}'], [f'-mexperiments.{command}']):
            monkeypatch.setattr(sys, 'orig_argv', ['python', *glued, *stage, '--flag=train'])
            monkeypatch.setattr(sys, 'argv', ['-m', *stage, '--flag=train'])
            assert experiments._is_resumable(), name
    for words in (['evaluate'], ['evaluate', 'train'], ['ultralink', 'report'], ['ultralink']):
        monkeypatch.setattr(
            sys, 'orig_argv', ['python', '-m', 'experiments.' + words[0], *words[1:]]
        )
        monkeypatch.setattr(sys, 'argv', ['-m', *words[1:]])
        assert not experiments._is_resumable(), words


def test_stages_that_resume_are_stages():
    from experiments.ultralink.__main__ import STAGES

    named = {name.split()[1] for name in experiments._RESUMABLE if ' ' in name}
    assert named <= set(STAGES)

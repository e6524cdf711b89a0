"""The sweep runner with fake processes: runs are skipped, resumed, retried, and fail."""

import io
import os
import signal
import sys
import textwrap
import threading
import time

import pytest
from rich.console import Console

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.sweeps import directory, expand
from malora_jax.sweeps.driver import SweepDriver
from malora_jax.sweeps.progress import ProgressDisplay, count_states
from malora_jax.sweeps.runner import Job, Runner
from malora_jax.training.preemption import Preempted
from tests.sweeps.helpers import make_results, small_sweep_config, write_run

# Records that it was started, then finishes each run or does what its name says.
SCRIPT = textwrap.dedent("""
    import json, os, pathlib, signal, sys, time
    workdir, *names = sys.argv[1:]
    for name in names:
        run = pathlib.Path(workdir) / name
        run.mkdir(exist_ok=True)
        with (run / 'starts').open('a') as starts:
            starts.write('.')
        (run / 'gpu').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))
        first = (run / 'starts').read_text() == '.'
        if 'fails' in name or ('once' in name and first):
            print('Traceback, or not')
            print(f'{name} cannot be.', file=sys.stderr)
            sys.exit(2)
        if 'killed' in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if 'long' in name:
            signal.signal(signal.SIGTERM, lambda *_: ((run / 'saved').touch(), sys.exit(0)))
            (run / 'metrics.jsonl').touch()
            time.sleep(60)
        if 'deaf' in name:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (run / 'metrics.jsonl').touch()
            time.sleep(60)
        if 'stopped' in name:
            (run / 'metrics.jsonl').write_text(json.dumps({'step': 3, 'loss': 2.5}) + '\\n{"st')
            sys.exit(0)
        (run / 'results.json').write_text(RESULTS)
""").replace('RESULTS', repr(files.json.dumps(make_results(0.5, 1.0))))


def command(workdir, *names):
    return [sys.executable, '-c', SCRIPT, str(workdir), *names]


def make(workdir, *names, at_once=1, gpus=()):
    """Start each run in a process, and return the runner and its progress lines."""
    (workdir / 'sweep' / 'logs').mkdir(parents=True)
    steps = dict.fromkeys(names, 10)
    runner = Runner(workdir, steps, lambda name: command(workdir, name), at_once, gpus, 0.02)
    jobs = [
        Job((name,), command(workdir, name)) for name in names if runner.states[name] == 'waiting'
    ]
    shown = []
    runner.run(jobs, shown.append)
    return runner, shown


def starts(workdir, name):
    path = workdir / name / 'starts'
    return len(path.read_text()) if path.exists() else 0


def test_finished_runs_are_skipped_and_failed_ones_tried_once_more(tmp_path):
    write_run(tmp_path, 'done', make_results(0.9, 0.1))
    names = ('done', 'fails', 'once', 'killed', 'good')
    runner, _ = make(tmp_path, *names)
    assert {name: starts(tmp_path, name) for name in names} == {
        **{'done': 0, 'fails': 2, 'once': 2, 'killed': 2, 'good': 1}
    }
    assert runner.states == {
        **{'done': 'finished', 'fails': 'failed', 'once': 'finished'},
        **{'killed': 'failed', 'good': 'finished'},
    }
    assert runner.errors == {'fails': 'fails cannot be.', 'killed': 'killed by SIGKILL'}
    assert count_states(runner.statuses()) == '3 finished, 2 failed'


def test_runs_of_one_process_are_tried_again_alone(tmp_path):
    (tmp_path / 'sweep' / 'logs').mkdir(parents=True)
    names = ('one', 'once', 'two')
    runner = Runner(
        tmp_path, dict.fromkeys(names, 10), lambda name: command(tmp_path, name), 1, (), 0.02
    )
    runner.run([Job(names, command(tmp_path, *names))], lambda _: None)
    assert set(runner.states.values()) == {'finished'}
    # The first was finished when the second failed, and the third had not started.
    assert [starts(tmp_path, name) for name in names] == [1, 2, 1]


def test_several_at_once(tmp_path):
    runner, shown = make(tmp_path, *(f'run{number}' for number in range(5)), at_once=3)
    running = [sum(s.state == 'running' for s in statuses.values()) for statuses in shown]
    assert max(running) == 3
    assert set(runner.states.values()) == {'finished'}


def test_each_process_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    names = ('one', 'two', 'three', 'four')
    make(tmp_path, *names, at_once=2, gpus=('3', '5'))
    assert {(tmp_path / name / 'gpu').read_text() for name in names} == {'3', '5'}
    make(tmp_path / 'without', 'five')
    assert (tmp_path / 'without' / 'five' / 'gpu').read_text() == 'all'


def ask_to_stop(run):
    """Send this process SIGTERM once a run is active."""

    def ask():
        while not (run / 'metrics.jsonl').exists():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()


def test_sigterm_stops_what_is_at_work_and_starts_no_more(tmp_path):
    ask_to_stop(tmp_path / 'long')
    with pytest.raises(Preempted):
        make(tmp_path, 'long', 'later')
    assert (tmp_path / 'long' / 'saved').exists()
    assert not (tmp_path / 'later').exists()


def test_a_run_that_has_to_be_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr('malora_jax.sweeps.runner._GRACE_SECONDS', 0.3)
    ask_to_stop(tmp_path / 'deaf')
    with pytest.raises(OSError, match=r'^deaf: not saved within 0\.3 s, so the process was killed'):
        make(tmp_path, 'deaf')


def test_a_run_that_was_stopped_is_no_failure(tmp_path):
    runner, _ = make(tmp_path, 'stopped')
    assert runner.states == {'stopped': 'stopped'}
    assert not runner.errors and starts(tmp_path, 'stopped') == 1
    status = runner.statuses()['stopped']
    assert (status.step, status.steps, status.loss) == (3, 10, 2.5)


def test_progress_without_a_terminal_is_a_line_for_each_change(tmp_path):
    out = io.StringIO()
    with ProgressDisplay(Console(file=out)) as progress:
        for statuses in make(tmp_path, 'good', 'fails')[1]:
            progress.show(statuses)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ['good: running', 'good: finished, score 50.0%, loss 1.000']
    assert lines[-1] == 'fails: failed, fails cannot be.'


def test_progress_in_a_terminal_is_a_table(tmp_path):
    write_run(tmp_path, 'done', make_results(0.25, 1.5))
    out = io.StringIO()
    runner, _ = make(tmp_path, 'done', 'fails')
    console = Console(file=out, force_terminal=True, width=100, height=30)
    with ProgressDisplay(console) as progress:
        progress.show(runner.statuses())
    text = out.getvalue()
    for word in ('1 finished, 1 failed', 'done', '25.0%', '1.500', '10/10', 'fails cannot be.'):
        assert word in text


# The processes of a sweep.


def jobs(workdir, at_once, together, **fields):
    started = SweepDriver(
        small_sweep_config(**fields), workdir, lambda _, names: Job(tuple(names), ()), together
    )
    return [job.names for job in started._jobs(at_once)]


def processes(*args, **fields):
    return [len(names) for names in jobs(*args, **fields)]


def test_runs_that_are_alike_are_one_process(tmp_path):
    runs = {'lora': {'arg': 'lora'}, 'malora': {'arg': 'malora'}}
    assert processes(tmp_path, 1, 0, runs=runs) == [4, 4]
    assert processes(tmp_path, 1, 3, runs=runs) == [3, 1, 3, 1]
    assert processes(tmp_path, 1, 1, runs=runs) == [1] * 8
    # Enough processes to run four at once.
    assert processes(tmp_path, 4, 0, runs=runs) == [2, 2, 2, 2]
    ranks, experts = ({'adapter': fields} for fields in ({'rank': (4, 8)}, {'num_experts': (4, 8)}))
    assert processes(tmp_path, 1, 0, grid=ranks, subspace_share=0.5) == [4]
    assert processes(tmp_path, 1, 0, grid=experts, subspace_share=0.5) == [2, 2]


def test_the_first_seed_of_every_row_is_trained_first(tmp_path):
    runs = {'lora': {'arg': 'lora', 'seeds': (3, 5, 4)}, 'malora': {'arg': 'malora'}}
    order = [('lora', 3), ('malora', 0), ('lora', 5), ('malora', 1), ('lora', 4)]
    assert jobs(tmp_path, 1, 1, runs=runs) == [
        (f'{name}-learning_rate{rate}-seed{seed}',)
        for name, seed in order
        for rate in (0.001, 0.01)
    ]


# The directory.


@pytest.fixture
def written(tmp_path):
    made = small_sweep_config()
    directory.write(tmp_path, made['base'], expand(made))
    return tmp_path


def sweeping(workdir, **fields):
    return SweepDriver(
        small_sweep_config(**fields), workdir, lambda workdir, names: Job(tuple(names), ())
    )


def test_the_same_sweep_and_a_larger_one_go_on(written):
    sweeping(written)
    sweeping(written, seeds=(0, 1, 2))
    sweeping(written, grid={'optimizer': {'learning_rate': (0.001, 0.003, 0.01)}})


def test_another_sweep_is_refused(written):
    with pytest.raises(UserError) as caught:
        sweeping(written, seeds=(0,))
    assert str(caught.value) == (
        f'{written} holds another sweep, with a run malora-learning_rate0.001-seed1: resume '
        'that one with its own config, or choose another --workdir.'
    )


def test_runs_of_another_config_are_refused(written):
    name = 'malora-learning_rate0.01-seed0'
    config = expand(small_sweep_config())[name].config
    config['adapter']['beta'] = 2.0
    (written / name).mkdir()
    files.write_json(written / name / 'config.json', config)
    with pytest.raises(UserError, match=f'{name} holds a run with another adapter.beta'):
        sweeping(written)


def test_what_is_no_sweep_is_left_alone(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='is not empty and holds no sweep'):
        sweeping(tmp_path)
    file = tmp_path / 'file'
    file.touch()
    with pytest.raises(UserError, match='is not a directory'):
        sweeping(file)


def test_a_mistake_writes_nothing(tmp_path):
    with pytest.raises(UserError):
        sweeping(tmp_path / 'new', grid={})
    assert not (tmp_path / 'new').exists()

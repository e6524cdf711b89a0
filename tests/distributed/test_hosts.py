"""A run of two processes with two fake devices each, and its recovery when one of them dies."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from malora_jax import cloud_storage
from malora_jax.files import read_json, read_json_lines
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.devices(start_first=True)

# Two data streams: each process reads one.
CHANGES = {'data__batch_size': 4, 'data__streams': 2, 'mesh__fsdp': 2}
END = 99


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        return listening.getsockname()[1]


def start(weights, workdir, *stop_after: int, **changes) -> list[subprocess.Popen]:
    """Start one process per number, which is killed once that step's checkpoint is saved."""
    port, given = free_port(), json.dumps(CHANGES | changes)
    return [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'tests.distributed.train_process'),
                *(str(port), str(len(stop_after)), str(number)),
                *(weights, workdir, str(step), 'malora', given),
                '--saved',
            ],
            cwd=ROOT,
            env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, step in enumerate(stop_after)
    ]


def finish(processes) -> list[str]:
    """Wait for all processes, and return their outputs."""
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        printed.append(out)
    return printed


def kill_the_rest(processes) -> None:
    """Wait for the process that kills itself, and kill the processes that wait for it."""
    dying = processes[-1]
    assert dying.wait(timeout=400) == -signal.SIGKILL, dying.stderr.read()
    for process in processes:
        process.kill()
        process.communicate()


def records(workdir) -> list[dict]:
    return read_json_lines(workdir / 'metrics.jsonl')


@pytest.fixture(scope='module')
def alone(weights, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    finish(start(weights, workdir, END))
    return workdir


@pytest.fixture(scope='module')
def together(weights, tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    """Run directory and outputs of a two-process run that was killed after steps 2 and 4."""
    workdir = tmp_path_factory.mktemp('together') / 'run'
    for step in (2, 4):
        kill_the_rest(start(weights, workdir, END, step))
        assert (workdir / 'checkpoints' / str(step)).is_dir()
    return workdir, finish(start(weights, workdir, END, END))


def test_two_processes_end_with_what_one_ends_with(alone, together):
    """Losses agree within 1e-4, as on other devices; no example is lost or read twice."""
    workdir, _ = together
    found, expected = records(workdir), records(alone)
    assert [each['loss'] for each in found] == pytest.approx(
        [each['loss'] for each in expected], rel=1e-4
    )
    for key in ('step', 'tokens', 'total_tokens', 'examples/toy_copy', 'examples/toy_reverse'):
        assert [each[key] for each in found] == [each[key] for each in expected]
    scores = [read_json(each / 'results.json')['tasks'] for each in (workdir, alone)]
    assert scores[0].keys() == scores[1].keys()


def test_one_process_speaks_and_writes(together):
    workdir, printed = together
    assert 'after step 4.' in printed[0]
    assert 'Goodput' in printed[0]
    # JAX's messages about collectives on CPUs are outside our control.
    assert not [word for word in ('tasks', 'Continuing', 'Goodput') if word in printed[1]]
    for step in ('4', '6'):
        files = {path.name for path in (workdir / 'checkpoints' / step / 'data').iterdir()}
        assert files >= {'stream_0-of-2.json', 'stream_1-of-2.json'}


def test_another_number_of_processes_goes_on(weights, together, alone, tmp_path):
    """The run is copied in its state after step 4, and resumes with one process instead of two."""
    workdir, _ = together
    copied = tmp_path / 'run'
    shutil.copytree(workdir, copied)
    shutil.rmtree(copied / 'checkpoints' / '6')
    for name in ('results.json', 'answers_before.jsonl', 'answers_after.jsonl'):
        (copied / name).unlink()
    (out,) = finish(start(weights, copied, END))
    assert 'after step 4.' in out
    assert [each['loss'] for each in records(copied)] == pytest.approx(
        [each['loss'] for each in records(alone)], rel=1e-4
    )


def test_sigterm_on_one_host_stops_all_after_the_same_step(weights, tmp_path):
    """The same command resumes from the saved checkpoint."""
    workdir, steps = tmp_path / 'run', {'training__steps': 40, 'training__checkpoint_every': 100}
    processes = start(weights, workdir, END, END, **steps)
    deadline = time.monotonic() + 400
    while not (workdir / 'metrics.jsonl').exists() or len(records(workdir)) < 2:
        assert time.monotonic() < deadline and processes[1].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    printed = finish(processes)
    last = len(records(workdir))
    assert last < 40
    assert f'Stopped by SIGTERM after step {last}, which is saved.' in printed[0]
    assert 'Stopped' not in printed[1]
    assert [path.name for path in (workdir / 'checkpoints').glob('[0-9]*')] == [str(last)]
    printed = finish(start(weights, workdir, END, END, **steps))
    assert f'after step {last}.' in printed[0]
    assert [each['step'] for each in records(workdir)] == list(range(1, 41))


def test_two_processes_with_their_directory_in_a_bucket(bucket, weights, alone):
    address = f'{bucket}/hosts'
    kill_the_rest(start(weights, address, END, 2))
    printed = finish(start(weights, address, END, END))
    assert f'Continuing {address} after step 2.' in printed[0]
    workdir = cloud_storage.localize(address)
    assert [each['loss'] for each in records(workdir)] == pytest.approx(
        [each['loss'] for each in records(alone)], rel=1e-4
    )
    scores = [read_json(each / 'results.json')['tasks'] for each in (workdir, alone)]
    assert scores[0].keys() == scores[1].keys()
    saved = cloud_storage.remote_path(workdir / 'checkpoints')
    assert (saved / '6' / 'commit_success.txt').exists()

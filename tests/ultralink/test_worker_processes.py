"""Worker processes of the stage `documents`: the same bytes, errors, signals and kills."""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import worker_processes
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import document
from tests.helpers.paths import ROOT
from tests.ultralink.helpers import WordCounter, contents, write_rows

pytestmark = pytest.mark.slow

DOCUMENTS = [
    {**document('fr', number), 'text': document('fr', number)['text'] * (number % 3)}
    for number in range(40)
]


def run(source, output, workers):
    config = DocumentsConfig('fr', 100, 900, 300, 100, workers=workers)
    given = StageRun(config, [source], output, token_counter=WordCounter(), shard_items=7)
    return asyncio.run(STAGES['documents'].run(given))


@pytest.fixture(autouse=True)
def few_first_items(monkeypatch):
    monkeypatch.setattr(worker_processes, '_FIRST_ITEMS', 3)


def test_the_same_bytes_with_any_number_of_workers(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', DOCUMENTS)
    found = run(source, tmp_path / 'one', 1)
    assert found.total.kept and found.total.dropped
    run(source, tmp_path / 'three', 3)
    assert contents(tmp_path / 'three') == contents(tmp_path / 'one')
    # The number of workers is not a setting, so that another machine can resume.
    assert run(source, tmp_path / 'one', 2) == found


def test_an_error_in_a_worker_names_file_and_line(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [*DOCUMENTS[:9], {'id': 'x', 'title': 't'}])
    with pytest.raises(UserError) as error:
        run(source, tmp_path / 'out', 2)
    assert str(error.value) == f"{source}:10 has no 'text'."


def _kill_this_process(row):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error(monkeypatch):
    monkeypatch.setattr(worker_processes, '_FIRST_ITEMS', 0)
    process = worker_processes.WorkerProcesses(_kill_this_process, 2)

    async def main():
        for number in range(5):
            await process(Row('in.jsonl:1', {'id': number}))

    with pytest.raises(OSError, match='A worker process has ended unexpectedly'):
        asyncio.run(main())


def session_processes(session: int) -> list[int]:
    """Return the ids of the live processes of a session, except for zombies."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            state, _, _, of = path.read_text().rpartition(')')[2].split()[:4]
            if int(of) == session and state != 'Z':
                found.append(int(path.parent.name))
    return found


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='no /proc')
def test_signals_and_kills_end_all_processes(tmp_path, weights):
    source = write_rows(tmp_path / 'in.jsonl', DOCUMENTS * 25)
    # The tiny tokenizer has a token for almost every byte.
    sizes = ('--max-document-tokens=90000', '--segment-tokens=1100', '--min-segment-tokens=300')

    def command(output, workers):
        return [
            *(sys.executable, '-m', 'experiments.ultralink', 'documents', '--language=fr'),
            *(f'--input={source}', f'--tokenizer={weights}', f'--output={output}', *sizes),
            f'--workers={workers}',
        ]

    def end(kill):
        process = subprocess.Popen(
            command(tmp_path / 'out', 2),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # This process, the fork server, the resource tracker, and two workers.
        wait_for(lambda: len(session_processes(process.pid)) >= 5 or process.poll() is not None)
        time.sleep(0.5)
        kill(process.pid)
        said, _ = process.communicate(timeout=60)
        wait_for(lambda: not session_processes(process.pid))
        assert 'Traceback' not in said and 'leaked' not in said
        return process.returncode

    assert end(lambda pid: os.kill(pid, signal.SIGKILL)) == -signal.SIGKILL
    # In a terminal, Ctrl-C reaches all processes.
    assert end(lambda pid: os.killpg(pid, signal.SIGINT)) == 130
    assert end(lambda pid: os.kill(pid, signal.SIGTERM)) == 0
    subprocess.run(command(tmp_path / 'out', 2), cwd=ROOT, check=True, capture_output=True)
    subprocess.run(command(tmp_path / 'alone', 1), cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / 'out') == contents(tmp_path / 'alone')

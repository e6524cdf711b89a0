"""Runs on full or read-only file systems end with one line and lose nothing that was saved.

The file systems are real: a tmpfs of a few hundred kilobytes, mounted in its own namespace.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers.mounts import can_mount
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

COMMAND = [
    *(sys.executable, '-m', 'experiments.train', '--config=configs/quickstart.py'),
    *('--config.model.name=tiny', "--config.data.tasks=('chain_sum',)"),
    *('--config.data.max_per_task=60', '--config.data.held_out=4', '--config.training.steps=6'),
    *('--config.training.checkpoint_every=2', '--config.adapter.rank=2'),
    *('--config.adapter.shared_rank=4', '--config.data.batch_size=1'),
    *('--config.data.template=plain', '--config.evaluation.max_new_tokens=40'),
]


pytestmark = [
    pytest.mark.slow(start_first=True),
    pytest.mark.skipif(not can_mount(), reason='needs Linux user namespaces'),
]


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


def on_disk(
    tmp_path: pathlib.Path, weights: pathlib.Path, options: str, *commands: str
) -> subprocess.CompletedProcess[str]:
    """Run shell commands with a tmpfs mounted at `$disk`.

    The shell function `train` starts the run there. The final content is copied to `tmp_path/kept`.

    Args:
        tmp_path: Directory of the mount point and the copy.
        weights: Weights of the tiny model.
        options: Mount options, such as 'size=1500k'.
        *commands: Shell commands.
    """
    disk, kept = tmp_path / 'disk', tmp_path / 'kept'
    disk.mkdir()
    command = shlex.join([*COMMAND, f'--config.model.weights={weights}', f'--workdir={disk}/run'])
    script = [
        f'cd {ROOT}; disk={disk}; train() {{ {command}; }}',
        f'mount -t tmpfs -o {options} none $disk',
        *commands,
        f'status=$?; cp -r $disk {kept}; exit $status',
    ]
    return subprocess.run(
        ['unshare', '--map-root-user', '--mount', 'bash', '-c', '\n'.join(script)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line on stderr besides progress bars."""
    lines = [line for line in done.stderr.splitlines() if not re.match('(train|score .*): ', line)]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_checkpoint_that_does_not_fit_ends_the_run_and_room_continues_it(tmp_path, weights):
    """Each checkpoint takes 0.3 MB, and 1 MB must be free: one fits, and a second does not."""
    done = on_disk(
        tmp_path,
        weights,
        'size=1500k',
        'train',
        'echo "status $?"; ls $disk/run/checkpoints',
        'mount -o remount,size=20m $disk',
        'train',
    )
    assert done.returncode == 0, done.stderr
    line = only_line(done)
    assert re.fullmatch(
        r'A checkpoint needs 1\.3 MB, but \S+/run/checkpoints has only \d\.\d MB free: make room; '
        r'the same command resumes from the last checkpoint\.',
        line,
    )
    assert 'status 1\n2\n' in done.stdout, 'the first checkpoint stays, and nothing beside it'
    assert 'after step 2.' in done.stdout
    records = [json.loads(line) for line in (tmp_path / 'kept/run/metrics.jsonl').open()]
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6]


def test_a_disk_without_room_for_one_checkpoint_is_told_before_any_work(tmp_path, weights):
    done = on_disk(tmp_path, weights, 'size=800k', 'train')
    assert done.returncode == 1
    line = only_line(done)
    assert line.startswith('A checkpoint needs 1.3 MB')
    assert done.stderr == f'{line}\n', 'no progress: nothing was scored or trained'


def test_a_file_that_fills_the_disk_is_one_line(tmp_path, weights):
    """The disk is already full: not even the config fits, and none is left half-written."""
    fill = 'head -c 1M /dev/zero > $disk/filler 2> /dev/null'
    done = on_disk(tmp_path, weights, 'size=800k', fill, 'train')
    assert done.returncode == 1
    message = 'The disk is full. Free some space, then run the same command again to resume.'
    assert only_line(done) == message
    assert not [path for path in (tmp_path / 'kept/run').rglob('*') if path.stat().st_size]


def test_a_read_only_disk_is_told_before_any_work(tmp_path, weights):
    done = on_disk(tmp_path, weights, 'ro,size=1m', 'train')
    assert done.returncode == 1
    line = only_line(done)
    assert 'Read-only file system' in line
    assert '/disk/run' in line
    assert not [*(tmp_path / 'kept').iterdir()]

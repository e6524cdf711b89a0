"""SLURM array jobs, as far as they can be checked without SLURM."""

import os
import pathlib
import re
import subprocess

import pytest

from malora_jax.errors import UserError
from malora_jax.sweeps import gpus, slurm
from malora_jax.sweeps.runner import Job

JOBS = [
    Job(('a',), ['python', '-c', 'print("a b")', "it's"]),
    Job(('b',), ['false']),
]


@pytest.fixture
def path(tmp_path):
    (tmp_path / 'sweep').mkdir()
    return slurm.write_array_job(tmp_path, JOBS, 3, ['--gpus=1', '--time=12:00:00'])


def test_the_array_is_bash_and_has_a_task_for_each_process(path):
    subprocess.run(['bash', '-n', path], check=True)
    options = dict(re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', path.read_text(), re.MULTILINE))
    assert options['array'] == '0-1%3'
    assert options['gpus'] == '1' and options['time'] == '12:00:00'
    assert 'requeue' in options and options['signal'] == 'TERM@120'


def run_task(path: pathlib.Path, number: int) -> tuple[int, list[str]]:
    """Run a task with a fake `srun` that prints its arguments and then runs them."""
    srun = path.parent / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexec "$@"\n')
    srun.chmod(0o755)
    env = os.environ | {
        'SLURM_ARRAY_TASK_ID': str(number),
        'PATH': f'{path.parent}:{os.environ["PATH"]}',
    }
    done = subprocess.run(['bash', path], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_a_task_starts_its_own_command_and_one_that_fails_twice(path):
    assert run_task(path, 0) == (0, [*JOBS[0].command, 'a b'])
    assert run_task(path, 1) == (1, ['false', 'false'])


def test_it_is_submitted_where_slurm_is(path, monkeypatch):
    assert 'sbatch is not installed on this machine' in slurm.submit(path)
    sbatch = path.parent / 'sbatch'
    sbatch.write_text('#!/bin/sh\necho "Submitted batch job 7 of $1"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv('PATH', f'{path.parent}:{os.environ["PATH"]}')
    assert slurm.submit(path) == f'Submitted batch job 7 of {path} ({path})'
    sbatch.write_text('#!/bin/sh\necho "no such partition" >&2\nexit 1\n')
    with pytest.raises(UserError, match=r'sbatch refuses .*: no such partition'):
        slurm.submit(path)


@pytest.mark.parametrize(
    'text, expected',
    [
        ('gpus=1', "--sbatch has 'gpus=1'; it must be options of sbatch, such as "),
        ('"', "--sbatch has '\"' (No closing quotation); it must be options of sbatch, such as "),
        ('--comment="a\nb"', "--sbatch has '--comment=a\\nb'; it must be options of sbatch"),
        ('--time=1 \\', '(No escaped character); it must be options of sbatch'),
    ],
)
def test_options_that_are_none(text, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        slurm.parse_sbatch_options(text)


def test_options_are_split_as_in_a_shell():
    assert slurm.parse_sbatch_options('--gpus=1 --comment="two words"') == [
        '--gpus=1',
        '--comment=two words',
    ]
    assert slurm.parse_sbatch_options('') == []


@pytest.mark.parametrize(
    'named, expected',
    [
        ('a', "--gpus has 'a'; it must list different GPU numbers, such as 0,1."),
        ('', "--gpus has ''; it must list "),
        ('0,0', "--gpus has '0'; it must list "),
        ('-1', "--gpus has '-1'; it must list "),
        ('\u0663', "--gpus has '\u0663'; it must list "),
        ('0,2', '--gpus has 2; this machine has 2 NVIDIA GPUs, numbered from 0.'),
        ('9' * 5000, f'--gpus has {"9" * 20}; this machine has 2 NVIDIA GPUs'),
    ],
)
def test_gpus_that_are_not_there(tmp_path, monkeypatch, named, expected):
    monkeypatch.setattr(gpus, '_DEVICES', tmp_path)
    for name in ('nvidia0', 'nvidia1', 'nvidiactl', 'nvidia-uvm'):
        (tmp_path / name).touch()
    gpus.check(['1', '0'])
    with pytest.raises(UserError, match=re.escape(expected)):
        gpus.check(named.split(','))

"""Launching a sweep as a SLURM array job."""

import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.sweeps.runner import Job

_SCRIPT = """#!/usr/bin/env bash
# Array job of the unfinished runs of a sweep. Submit it with: sbatch {path}
# When it has ended, repeat the command that wrote this file: it reports on the runs, or writes
# another array job of the runs that are still unfinished.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{at_once}
#SBATCH --output={logs}/slurm-%A_%a.txt
#SBATCH --requeue
# Send SIGTERM two minutes before the time limit: a run then saves, and resumes when requeued.
#SBATCH --signal=TERM@120
{options}set -euo pipefail

cd {directory}
case "$SLURM_ARRAY_TASK_ID" in
{cases}
esac
# Retry a failed command once.
srun "${{command[@]}}" || srun "${{command[@]}}"
"""


def parse_sbatch_options(text: str) -> list[str]:
    """Split sbatch options as a shell does, and check them.

    Args:
        text: Options in one string, such as '--gpus=1 --time=12:00:00'.

    Raises:
        UserError: The quotes do not match, or the text contains anything but options.
    """
    requirement = 'it must be options of sbatch, such as "--gpus=1 --time=12:00:00"'
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UserError(f'--sbatch has {text!r} ({error}); {requirement}.') from error
    for option in found:
        if not option.startswith('--') or not option.isprintable():
            raise UserError(f'--sbatch has {option!r}; {requirement}.')
    return found


def write_array_job(
    workdir: pathlib.Path, jobs: Sequence[Job], max_jobs: int, options: Sequence[str]
) -> pathlib.Path:
    """Write the bash script of the array job, `sweep/array.sbatch` in the sweep's directory.

    Args:
        workdir: Directory of the sweep.
        jobs: Jobs of the array, at least one.
        max_jobs: Maximum number of concurrent jobs; 0 for no limit.
        options: Options of sbatch, as `parse_sbatch_options` returns them.

    Returns:
        The path of the script.
    """
    path = workdir / 'sweep' / 'array.sbatch'
    cases = '\n'.join(
        f'  {number}) command=({shlex.join(job.command)}) ;;' for number, job in enumerate(jobs)
    )
    text = _SCRIPT.format(
        path=path,
        name=workdir.name,
        last=len(jobs) - 1,
        at_once=f'%{max_jobs}' if max_jobs else '',
        logs=(workdir / 'sweep' / 'logs').absolute(),
        options=''.join(f'#SBATCH {option}\n' for option in options),
        directory=shlex.quote(str(pathlib.Path.cwd())),
        cases=cases,
    )
    files.write_text(path, text.rstrip())
    return path


def submit(path: pathlib.Path) -> str:
    """Submit an array job, if sbatch is installed on this machine.

    Args:
        path: Script of the array job.

    Returns:
        A sentence for the user: the answer of sbatch, or that the script is not submitted yet.

    Raises:
        UserError: SLURM refuses the job.
    """
    if shutil.which('sbatch') is None:
        return (
            f'Wrote {path}. sbatch is not installed on this machine: submit the file where SLURM '
            'is available.'
        )
    done = subprocess.run(['sbatch', str(path)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f'sbatch refuses {path}: {done.stderr.strip() or done.stdout.strip()}')
    return f'{done.stdout.strip()} ({path})'

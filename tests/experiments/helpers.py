"""Running commands as a user does."""

import pathlib
import subprocess

from tests.helpers.fork_server import run_module


def run(command: str, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    return run_module(f'experiments.{command}', *arguments, timeout=timeout)


def run_with_mistake(command: str, *arguments: str) -> str:
    """Run a command with a user error, and return its one-line message."""
    done = run(command, *arguments)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert not done.stdout
    return lines[0]


def small_run_arguments(weights: pathlib.Path) -> list[str]:
    """Return the arguments of a run of three steps on two tasks with the tiny model's weights."""
    return [
        '--config=configs/quickstart.py:malora',
        '--config.model.name=tiny',
        f'--config.model.weights={weights}',
        "--config.data.tasks=('chain_sum','number_filtering')",
        '--config.data.max_per_task=20',
        '--config.data.held_out=4',
        '--config.data.sequence_length=256',
        '--config.data.batch_size=1',
        '--config.training.steps=3',
    ]

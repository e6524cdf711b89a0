"""Seeded fuzzing: the number of attempts of a fuzz test, and their random generators.

By default a test makes the number of attempts that it asks for, which takes seconds. A long run
continues for a given time instead, and another seed makes other attempts:

    python -m pytest tests/fuzz/test_files.py --fuzz-minutes=30 --fuzz-seed=7
"""

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.fork_server import ForkServer


def pytest_addoption(parser):
    group = parser.getgroup('fuzz')
    group.addoption('--fuzz-seed', type=int, default=0, help='Random seed of all attempts.')
    group.addoption(
        '--fuzz-minutes',
        type=float,
        default=0.0,
        help='Minutes for which each fuzz test makes attempts; 0 = a fixed number of attempts.',
    )


@pytest.fixture
def attempts(request) -> Callable[[int], Iterator[random.Random]]:
    """Function that yields one seeded random generator per attempt.

    A failed attempt can be repeated alone: the generator depends only on `--fuzz-seed`, the test's
    name and the attempt's number, which the terminal summary shows.
    """
    seed = request.config.getoption('fuzz_seed', 0)
    minutes = request.config.getoption('fuzz_minutes', 0.0)
    name = request.node.nodeid

    def generate(count: int) -> Iterator[random.Random]:
        end = time.monotonic() + 60 * minutes
        made = 0
        while time.monotonic() < end if minutes else made < count:
            made += 1
            # Set before each attempt, so that the report of a failure includes it.
            request.node.user_properties[:] = [('attempts', made)]
            yield random.Random(f'{seed} {name} {made}')

    return generate


@pytest.fixture(scope='module')
def server():
    """Process that runs commands with limits, without keys or network."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith('_KEY')}
    threads = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    with ForkServer(kept | threads | {'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'}) as running:
        yield running


def pytest_terminal_summary(terminalreporter, config):
    """List the attempts of each test; a failed test stops at its failure."""
    reports = [
        report
        for outcome in ('passed', 'failed')
        for report in terminalreporter.stats.get(outcome, [])
        if 'attempts' in dict(report.user_properties)
    ]
    if reports:
        terminalreporter.section('attempts of fuzz tests')
        terminalreporter.write_line(f'seed {config.getoption("fuzz_seed", 0)}')
        for report in reports:
            made = dict(report.user_properties)['attempts']
            terminalreporter.write_line(f'{made:8,} {report.outcome} {report.nodeid}')

"""The stage `dialogues`, killed a few times; the named scripts kill it more often."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ('script', 'arguments', 'expected'),
    [
        ('kill_often', ['2', '1', '20'], ['Repeated although cached: 0.', 'same bytes: True.']),
        ('kill_batches', ['4', '1', '20'], ['Paid twice: 0.', 'same bytes as online: True.']),
    ],
)
def test_kills_change_nothing(script, arguments, expected):
    command = [sys.executable, '-m', f'tests.ultralink.{script}', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in expected:
        assert text in done.stdout

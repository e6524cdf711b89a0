"""The stage `dialogues`, killed a few times; `kill_often.py` kills it more often."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow


def test_kills_in_batch_mode_change_nothing():
    command = [sys.executable, '-m', 'tests.ultralink.kill_batches', '4', '1', '20']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Paid twice: 0.' in done.stdout
    assert 'same bytes as online: True.' in done.stdout


def test_kills_change_nothing():
    command = [sys.executable, '-m', 'tests.ultralink.kill_often', '2', '1', '20']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Repeated although cached: 0.' in done.stdout
    assert 'same bytes: True.' in done.stdout

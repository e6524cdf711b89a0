"""The stage `dialogues`, killed a few times; `kill_often.py` does it more often."""

import pathlib
import subprocess
import sys


def test_kills_change_nothing():
    script = pathlib.Path(__file__).with_name('kill_often.py')
    done = subprocess.run(
        [sys.executable, script, '2', '1', '20'], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Asked again although kept: 0.' in done.stdout
    assert 'same bytes: True.' in done.stdout

"""The archived runs behind docs/comparison.md, read with the command on that page."""

import re
import subprocess
import sys
import tarfile

import pytest

from tests.helpers.paths import ROOT

PAGE = (ROOT / 'docs' / 'comparison.md').read_text('utf-8')


@pytest.fixture(scope='module')
def output(tmp_path_factory):
    """Output of the documented command, in a directory with the unpacked archive."""
    home = tmp_path_factory.mktemp('home')
    (home / 'runs' / 'table2_small').mkdir(parents=True)
    with tarfile.open(ROOT / 'docs' / 'results' / 'table2_small.tar.xz') as archive:
        archive.extractall(home / 'runs' / 'table2_small', filter='data')
    unpack, command = re.search(r'```sh\n(mkdir .*)\n(python .*)\n```', PAGE).groups()
    assert 'tar xf docs/results/table2_small.tar.xz -C runs/table2_small' in unpack
    arguments = command.replace('=runs/', f'={home}/runs/').split()[1:]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=300)
    return home / 'runs' / 'table2_small_report'


def test_every_table_of_the_page_is_that_of_the_archive(output):
    report = (output / 'report.md').read_text('utf-8').splitlines()
    rows = [line for line in PAGE.splitlines() if line.startswith('| ')]
    assert len(rows) == 42
    for row in rows:
        assert row in report


def test_the_report_says_what_the_archive_lacks(output):
    report = (output / 'report.md').read_text('utf-8')
    assert 'These sections need checkpoints, which are missing from asylora-seed0, ' in report
    assert 'How similar are the experts' not in report

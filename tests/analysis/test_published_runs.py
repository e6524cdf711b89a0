"""The archived runs behind docs/comparison.md, read with the command on that page."""

import re
import subprocess
import sys
import tarfile

import pytest

from malora_jax.files import read_json
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


def test_every_number_of_the_page_is_that_of_the_archive(output):
    report = (output / 'report.md').read_text('utf-8')
    rows = [line for line in PAGE.splitlines() if line.startswith(('| ', '- '))]
    assert len(rows) == 47
    for row in rows:
        assert row in report.splitlines()


def test_the_text_of_the_page_is_that_of_the_archive(output):
    found = read_json(output / 'analysis.json')
    rows, seesaw = found['scores'], found['seesaw']
    losses = {name: row['loss_minus'] for name, row in rows.items()}
    assert '4.88 nats' in PAGE and rows['base']['average_loss'] == pytest.approx(4.88, abs=0.005)
    for name, baseline, text in (
        ('asylora', 'lora', '0.016 nats ahead of AsyLoRA'),
        ('molora', 'lora', '0.097 of MoLoRA'),
        ('malora', 'lora', '0.109 of MALoRA'),
        ('malora', 'molora', '0.012 nats behind MoLoRA'),
    ):
        assert text in PAGE
        number = float(re.search(r'[\d.]+', text)[0])
        assert losses[name][baseline]['mean'] == pytest.approx(number, abs=0.0005)
    changes = [change for by_task in seesaw.values() for change in by_task.values()]
    clear = [c['mean'] for c in changes if not c['interval'][0] <= 0 <= c['interval'][1]]
    assert 'one of 30 comparisons loses' in PAGE and len(changes) == 30
    assert len(clear) == 1 and clear[0] == seesaw['molora']['openbookqa']['mean'] < 0


def test_the_report_says_what_the_archive_lacks(output):
    report = (output / 'report.md').read_text('utf-8')
    assert 'These sections need checkpoints, which are missing from asylora-seed0, ' in report
    assert 'How similar are the experts' not in report

"""A sweep through the real command: two tiny runs, one of which must fail."""

import csv
import json
import pathlib
import subprocess

import pytest

from tests.experiments.helpers import run, run_with_mistake
from tests.helpers.sums_task import write_sums_task, write_sweep

pytestmark = pytest.mark.slow(start_first=True)

GOOD, BAD = 'malora-learning_rate0.001-seed0', 'malora-learning_rate1e+30-seed0'


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> pathlib.Path:
    """Directory with a model, a data file, a base config and a sweep config."""
    home = tmp_path_factory.mktemp('home')
    write_sums_task(home, steps=3, checkpoint_every=1, evaluate_every=3, clip_norm=1e9)
    grid = "{'optimizer': {'learning_rate': (1e-3, 1e30)}}"
    write_sweep(home / 'sweep.py', (0,), grid)
    return home


@pytest.fixture(scope='module')
def swept(home) -> subprocess.CompletedProcess[str]:
    """Result of the sweep: both runs in one process, then the failed one alone."""
    command = ('sweep', f'--config={home}/sweep.py', f'--workdir={home}/swept')
    return run(*command, timeout=900)


def test_a_sweep_makes_its_runs_and_tells_which_failed(home, swept):
    assert swept.returncode == 1, swept.stderr
    assert '1 finished, 1 failed.' in swept.stdout
    assert f'{GOOD}: finished, score ' in swept.stdout
    assert f'{BAD}: failed, The loss is ' in swept.stdout
    assert '1 of 2 runs are finished.' in swept.stdout
    with (home / 'swept' / 'runs.csv').open() as file:
        rows = {row['run']: row for row in csv.DictReader(file)}
    assert len(rows) == 2
    assert rows[GOOD]['state'] == 'finished' and float(rows[GOOD]['loss']) > 0
    assert 'optimizer.learning_rate or optimizer.clip_norm' in rows[BAD]['error']
    log = (home / 'swept' / 'sweep' / 'logs' / f'{GOOD}.txt').read_text()
    assert 'Joint training of 2 runs: ' in log and f'{BAD}: The loss is ' in log
    for name in ('report.md', 'learning_rate.png', 'sweep.json'):
        assert (home / 'swept' / name).stat().st_size > 100


def test_each_run_is_an_ordinary_one(home, swept):
    workdir = home / 'swept' / GOOD
    results = json.loads((workdir / 'results.json').read_text())
    again = run('train', f'--config=configs/saved.py:{workdir}/config.json', f'--workdir={workdir}')
    assert again.returncode == 0, again.stderr
    assert 'is finished; its results:' in again.stdout
    assert results['steps'] == 3
    done = run('analyze', f'--workdir={home}/swept', '--norouting', f'--output={home}/report')
    assert done.returncode == 0, done.stderr
    assert GOOD in (home / 'report' / 'report.md').read_text()


def test_again_it_makes_only_what_is_not_finished(home, swept):
    finished = home / 'swept' / GOOD / 'results.json'
    before = finished.stat().st_mtime_ns
    done = run('sweep', f'--config={home}/sweep.py', f'--workdir={home}/swept', '--report')
    assert done.returncode == 0 and '## Not finished' in done.stdout
    done = run(
        'sweep',
        f'--config={home}/sweep.py',
        f'--workdir={home}/swept',
        '--launcher=slurm',
        '--sbatch=--gpus=1',
    )
    assert done.returncode == 0, done.stderr
    script = (home / 'swept' / 'sweep' / 'array.sbatch').read_text()
    assert '--array=0-0\n' in script
    assert BAD in script and GOOD not in script
    assert finished.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    'override, message',
    [
        ('--config.grid={}', 'grid is empty: name a field with its values, or leave it out.'),
        ('--config.seeds=()', 'seeds is (); it must be a tuple of different whole numbers'),
        ('--config.base=none.py', "base is 'none.py': there is no such file."),
        ('--config.sedes=(0,)', 'The config does not have the field of an override'),
        (
            '--config.grid.optimizer.learning_rate=()',
            'grid.optimizer.learning_rate is empty: give it at least one value.',
        ),
    ],
)
def test_a_mistake_is_one_line(home, tmp_path, override, message):
    workdir = tmp_path / 'new'
    line = run_with_mistake('sweep', f'--config={home}/sweep.py', f'--workdir={workdir}', override)
    assert line.startswith(message)
    assert not workdir.exists()


def test_another_sweep_in_the_same_directory(home, swept):
    line = run_with_mistake('sweep', '--config=configs/sweeps/rank.py', f'--workdir={home}/swept')
    assert line.startswith(f'{home}/swept holds another sweep, with a run malora-learning_rate')


def test_a_saved_config_that_is_not_there(tmp_path):
    line = run_with_mistake(
        'train', '--config=configs/saved.py:none.json', f'--workdir={tmp_path}/run'
    )
    assert line.startswith("There is no file 'none.json': give the path of the config.json")

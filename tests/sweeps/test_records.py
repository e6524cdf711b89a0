"""A sweep records its finished runs, and goes on from the records on another machine."""

import sys
import textwrap

import pytest

from malora_jax.runs import LoadedRun
from malora_jax.sweeps import expand
from malora_jax.sweeps.base_answers import ANSWERS, copy_base_answers
from malora_jax.sweeps.driver import SweepDriver
from malora_jax.sweeps.runner import Job
from tests.sweeps.helpers import ROOT, TASKS, small_sweep_config

# Finishes a run whose answers are made up, and counts how often it was started.
SCRIPT = textwrap.dedent("""
    import pathlib, sys
    from malora_jax.training.config_format import read_config
    from ml_collections import ConfigDict
    from tests.helpers.finished_runs import write_finished_run
    workdir, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    (workdir / 'starts').open('a').write('.')
    config = ConfigDict(read_config(workdir / 'sweep' / 'configs' / f'{name}.json'))
    config.evaluation.tasks = config.data.tasks
    write_finished_run(workdir / name, config, 20, seed=config.seed)
""")


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def sweep(workdir, records):
    def job(workdir, names):
        return Job(tuple(names), [sys.executable, '-c', SCRIPT, str(workdir), *names])

    runs = {'malora': {'arg': 'malora', 'overrides': {'data': {'tasks': TASKS}}}}
    return SweepDriver(small_sweep_config(runs=runs), workdir, job, 1, records)


def test_a_sweep_continues_from_records_elsewhere(tmp_path):
    records = tmp_path / 'records'
    report = sweep(tmp_path / 'one', records).run(max_processes=2)
    assert (tmp_path / 'one' / 'starts').read_text() == '....'
    names = [f'malora-learning_rate{rate}-seed{seed}' for rate in (0.001, 0.01) for seed in (0, 1)]
    assert sorted(path.name for path in records.iterdir()) == [f'{name}.tar.xz' for name in names]

    (records / f'{names[1]}.tar.xz').unlink()
    elsewhere = sweep(tmp_path / 'two', records).run(max_processes=1)
    assert (tmp_path / 'two' / 'starts').read_text() == '.'
    assert elsewhere.partition('\n')[2] == report.partition('\n')[2]  # Without the title.
    assert len([*records.iterdir()]) == 4


def test_answers_without_texts_are_not_reused(tmp_path):
    records = tmp_path / 'records'
    sweep(tmp_path / 'one', records).run(max_processes=2)
    for path in [*records.glob('*-learning_rate0.01-*')]:
        path.unlink()
    name = 'malora-learning_rate0.01-seed0'
    config = expand(small_sweep_config())[name].config
    sweep(tmp_path / 'two', records)._synchronize_records()
    restored = tmp_path / 'two' / 'malora-learning_rate0.001-seed0'
    assert LoadedRun(restored).is_finished and (restored / ANSWERS).exists()
    assert not copy_base_answers(tmp_path / 'two', name, config, {})

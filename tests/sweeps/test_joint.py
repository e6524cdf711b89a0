"""Complete runs trained jointly, compared with the same runs trained alone."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from malora_jax import training
from malora_jax.adapters import trees
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.errors import UserError
from malora_jax.files import read_json, read_json_lines
from malora_jax.sweeps import joint
from malora_jax.sweeps.joint import train_together
from malora_jax.training import memory_estimate, metrics, run_config
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.plan import memory_bytes
from malora_jax.training.preemption import Preempted
from malora_jax.training.run_progress import RunProgress
from malora_jax.training.setup import build_setup
from tests.helpers.metric_records import without_times
from tests.helpers.runs import STEPS, TASKS, toy_run_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly', 'smooth_adam')]


def configs(weights, **changes):
    """Return three runs that differ in learning rate, dropout, seed and rank."""
    changes = {'data__validation': 4, 'training__evaluate_every': 3} | changes
    return {
        'a': toy_run_config(weights, **changes),
        'b': toy_run_config(
            weights, **changes, optimizer__learning_rate=1e-3, adapter__dropout=0.3
        ),
        'c': toy_run_config(weights, **changes, seed=2, adapter__rank=3),
    }


@pytest.fixture(scope='module')
def alone(tiny_weights, tmp_path_factory):
    """Directory of the runs, each trained alone."""
    workdir = tmp_path_factory.mktemp('alone')
    for name, config in configs(tiny_weights).items():
        training.train(config, workdir / name, write_run_plots)
    return workdir


def last_state(workdir, config):
    setup = build_setup(run_config(config))
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        return checkpoints.restore_state(setup.fresh_state())


def assert_same(workdir, alone, configs):
    """Check each run's metrics, adapter, moments, data position and files."""
    for name, config in configs.items():
        ours, theirs = (
            without_times(read_json_lines(directory / name / 'metrics.jsonl'))
            for directory in (workdir, alone)
        )
        assert [r.keys() for r in ours] == [r.keys() for r in theirs]
        for record, expected in zip(ours, theirs, strict=True):
            assert record == pytest.approx(expected, rel=1e-4), name
        state, expected = (last_state(each / name, config) for each in (workdir, alone))
        assert int(state.step) == STEPS
        leaves = zip(trees.named_leaves(state), trees.named_leaves(expected), strict=True)
        for (path, a), (_, b) in leaves:
            scale = max(np.abs(b).max(), 1e-12)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * scale, err_msg=path)
        assert read_json(workdir / name / 'config.json') == read_json(alone / name / 'config.json')
        files = [{path.name for path in (each / name).iterdir()} for each in (workdir, alone)]
        assert files[0] == files[1]
        found, wanted = (read_json(each / name / 'results.json') for each in (workdir, alone))
        for task in TASKS:
            loss = wanted['tasks'][task]['loss_after']
            assert found['tasks'][task]['loss_after'] == pytest.approx(loss, rel=1e-3)
            for key in ('before', 'loss_before', 'examples', 'scoring'):
                assert found['tasks'][task][key] == wanted['tasks'][task][key]
        assert found['best_step'] == wanted['best_step']
        assert found.keys() == wanted.keys()


def test_runs_are_as_they_would_be_alone(alone, tiny_weights, tmp_path, capsys):
    assert train_together(configs(tiny_weights), tmp_path, measure=False) == {}
    assert_same(tmp_path, alone, configs(tiny_weights))
    # The runs differ from each other.
    losses = {read_json(tmp_path / name / 'results.json')['validation_loss'] for name in 'abc'}
    assert len(losses) == 3
    # The ordinary command treats each run as finished.
    training.train(configs(tiny_weights)['b'], tmp_path / 'b')
    assert 'is finished; its results' in capsys.readouterr().out


def test_from_different_steps_they_go_on(alone, tiny_weights, tmp_path, monkeypatch):
    """All runs stop in step 4; then the first resumes alone, and keeps its checkpoint of step 4."""
    write = metrics.MetricWriter.write

    def fail(self, record):
        if self._file.name.startswith(str(tmp_path / 'c')) and record['step'] == 4:
            raise KeyboardInterrupt
        write(self, record)

    monkeypatch.setattr(metrics.MetricWriter, 'write', fail)
    with pytest.raises(KeyboardInterrupt):
        train_together(configs(tiny_weights), tmp_path, measure=False)
    monkeypatch.undo()
    training.train(configs(tiny_weights)['a'], tmp_path / 'a')
    (tmp_path / 'a' / 'results.json').unlink()
    shutil.rmtree(tmp_path / 'a' / 'checkpoints' / '6')
    newest = [
        max(int(path.name) for path in (tmp_path / name / 'checkpoints').glob('[0-9]*'))
        for name in 'abc'
    ]
    assert newest == [4, 3, 3]
    assert train_together(configs(tiny_weights), tmp_path, measure=False) == {}
    assert_same(tmp_path, alone, configs(tiny_weights))


def test_sigterm_saves_all(tiny_weights, tmp_path, monkeypatch):
    next_batch = RunProgress.next_batch

    def ask(self):
        if self.workdir.name == 'b' and self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_batch(self)

    monkeypatch.setattr(RunProgress, 'next_batch', ask)
    with pytest.raises(Preempted):
        train_together(configs(tiny_weights), tmp_path, measure=False)
    for name in 'abc':
        assert (tmp_path / name / 'checkpoints' / '3').is_dir()
        assert not (tmp_path / name / 'results.json').exists()


def test_a_run_that_fails_leaves_the_others(alone, tiny_weights, tmp_path):
    """Two of four runs get a loss that is not finite; the others are combined again."""
    wild = {
        name: toy_run_config(
            tiny_weights,
            optimizer__learning_rate=rate,
            data__validation=4,
            training__evaluate_every=3,
        )
        for name, rate in (('wild', 1e30), ('wilder', 1e32))
    }
    good = {name: config for name, config in configs(tiny_weights).items() if name != 'b'}
    errors = train_together(wild | good, tmp_path, measure=False)
    assert errors.keys() == wild.keys()
    assert 'at step 2, which was not saved' in errors['wild']
    assert not (tmp_path / 'wild' / 'results.json').exists()
    assert_same(tmp_path, alone, good)


def test_what_is_finished_is_left_alone(tiny_weights, tmp_path, monkeypatch):
    for name in 'abc':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text('{}')
    monkeypatch.setattr(joint, 'build_setup', None)
    assert train_together(configs(tiny_weights), tmp_path) == {}


def test_a_directory_of_another_run_is_refused(tiny_weights, tmp_path):
    (tmp_path / 'b').mkdir()
    other = toy_run_config(tiny_weights, adapter__beta=3.0)
    (tmp_path / 'b' / 'config.json').write_text(json.dumps(other))
    with pytest.raises(UserError, match=r'b holds a run with another adapter\.beta'):
        train_together(configs(tiny_weights), tmp_path)
    assert not (tmp_path / 'a').exists()


# Number of runs per process.


@pytest.mark.parametrize('fit, sizes', [(0, [1, 1, 1]), (1, [1, 1, 1]), (2, [2, 1]), (9, [3])])
def test_as_many_as_fit(fit, sizes, tiny_weights, tmp_path, monkeypatch):
    trained = []

    def note(some, *_):
        trained.append(len(some))
        return {}

    def note_alone(some, *_):
        trained.extend([1] * len(some))
        return {}

    monkeypatch.setattr(joint, 'max_joint_runs', lambda *_: fit)
    monkeypatch.setattr(joint, '_train', note)
    monkeypatch.setattr(joint, '_train_sequentially', note_alone)
    train_together(configs(tiny_weights), tmp_path)
    assert trained == sizes


def test_the_base_counts_once(tiny_weights):
    run = run_config(configs(tiny_weights)['a'])
    base = memory_bytes(build_setup(run).model.clone(adapter=None))['base']
    total = 10**9
    count = memory_estimate.max_joint_runs(run, total)
    each = (0.9 * total - base) / (count + 0.5)
    # Twice the memory does not need a second base model, so more than twice as many runs fit.
    assert memory_estimate.max_joint_runs(run, 2 * total) == pytest.approx(
        (1.8 * total - base) / each, rel=0.1
    )
    assert memory_estimate.max_joint_runs(run, base) == 0
    assert memory_estimate.available_memory() > 2**27


def test_what_is_measured_is_told_and_decides(tiny_weights, tmp_path, monkeypatch, capsys):
    """Runs train alone if that is faster: here a joint step takes as long as ten single steps."""
    ways = []
    monkeypatch.setattr(
        joint, '_train_sequentially', lambda some, *_: ways.append(list(some)) or {}
    )
    compared = joint.measure_joint_step

    def slowly(*args):
        found, step = compared(*args)
        assert found.joint_bytes < 3 * found.single_bytes
        assert found.joint_bytes > found.single_bytes
        assert found.runs == 3 and found.joint_s > 0 and found.single_s > 0
        return found._replace(joint_s=2.0, single_s=0.2), step

    monkeypatch.setattr(joint, 'measure_joint_step', slowly)
    train_together(configs(tiny_weights), tmp_path)
    out = capsys.readouterr().out
    # 3 · 2 rows of 96 positions in two seconds, compared with 2 rows in 0.2 seconds.
    assert 'Joint training of 3 runs: 288 tokens/s, ' in out
    assert 'A single run: 960 tokens/s' in out
    assert 'Joint training takes 3.33 of the time' in out
    assert 'so the runs are trained one after another.' in out
    assert ways == [['a', 'b', 'c']]


def test_only_runs_of_equal_steps_train_together(tiny_weights, tmp_path, monkeypatch):
    """With epochs, another seed may give another number of steps and so another schedule."""
    setups = {'a': 7, 'b': 8, 'c': 7}
    trained = []

    def train(configs, setups, *_):
        trained.append([*configs])
        assert len({setup.steps for setup in setups}) == 1
        return {}

    monkeypatch.setattr(
        joint, '_setups', lambda *_: {k: SimpleNamespace(steps=v) for k, v in setups.items()}
    )
    monkeypatch.setattr(joint, '_train', train)
    monkeypatch.setattr(
        joint, '_train_sequentially', lambda configs, *_: trained.append([*configs]) or {}
    )
    assert train_together(configs(tiny_weights), tmp_path) == {}
    assert trained == [['a', 'c'], ['b']]

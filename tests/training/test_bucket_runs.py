"""Runs in a bucket, killed and resumed, compared with a run on a disk."""

import signal
import subprocess
import sys

import pytest

from malora_jax import cloud_storage, inference, training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.files import read_json, read_json_lines
from malora_jax.training import metrics
from tests.helpers.metric_records import without_times
from tests.helpers.paths import ROOT
from tests.helpers.runs import toy_run_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures('compile_quickly', 'commands_compile_quickly'),
]


def records(workdir):
    return without_times(read_json_lines(workdir / 'metrics.jsonl'))


def names(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith('.'))


def kill(weights, address, step, *when):
    """Train in a separate process until it kills itself."""
    arguments = map(str, [weights, address, step, 'malora', '{}', *when])
    command = [sys.executable, '-m', 'tests.helpers.runs', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope='module')
def ended(bucket, tiny_weights):
    """Address of a run that was killed in a step after a save and in a save, and then resumed."""
    address = f'{bucket}/runs/killed'
    # The checkpoint of step 2 is written in the background, so it may or may not exist during step
    # 4.
    for step, when, newest in ((4, [], (0, 2)), (4, ['--saved'], (4,))):
        kill(tiny_weights, address, step, *when)
        workdir = cloud_storage.localize(address)
        whole = cloud_storage.remote_path(workdir / 'checkpoints').glob('*/commit_success.txt')
        last = max((int(path.parent.name) for path in whole), default=0)
        assert last in newest
        # No checkpoint is ahead of the recorded metrics.
        assert len(read_json_lines(workdir / 'metrics.jsonl')) >= last
    training.train(toy_run_config(tiny_weights), workdir, write_run_plots)
    return address


def test_a_run_that_was_killed_goes_on_as_on_a_disk(ended, finished_workdir):
    cloud_storage.remove_local_copies()
    workdir = cloud_storage.localize(ended)  # As another machine sees it.
    assert records(workdir) == records(finished_workdir)
    found, expected = (
        read_json(each / 'results.json')['tasks'] for each in (workdir, finished_workdir)
    )
    assert found == expected
    assert names(cloud_storage.remote_path(workdir)) == names(finished_workdir)
    assert len(names(workdir / 'tensorboard')) == 1


def test_its_model_is_that_of_the_run_on_a_disk(ended, finished_workdir):
    answers = [
        inference.load(each).generate(['0123 toy_copy']) for each in (ended, finished_workdir)
    ]
    assert answers[0] == answers[1]


def test_of_two_runs_the_one_that_began_first_stops_and_saves_no_more(
    bucket, tiny_weights, monkeypatch
):
    address = f'{bucket}/runs/two'
    original = metrics.MetricWriter.write

    def write(self, record):
        original(self, record)
        if record['step'] == 3:
            other = cloud_storage._LocalCopy(*address.removeprefix('gs://').split('/', 1))
            other.download_changes()
            with (other.path / 'goodput.jsonl').open('a') as file:
                file.write('{"job_start_time": 0.0}\n')
            other.upload_changes()

    monkeypatch.setattr(metrics.MetricWriter, 'write', write)
    workdir = cloud_storage.localize(address)
    with pytest.raises(OSError, match=f'Another command has written to {address}'):
        training.train(toy_run_config(tiny_weights), workdir)
    assert names(cloud_storage.remote_path(workdir / 'checkpoints')) == ['2']
    cloud_storage.remove_local_copies()
    assert len(read_json_lines(cloud_storage.localize(address) / 'metrics.jsonl')) == 2

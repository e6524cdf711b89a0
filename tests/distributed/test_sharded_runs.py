"""Complete runs on several fake devices, each in a separate process."""

import json
import os
import subprocess
import sys

import pytest

from malora_jax import files
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.devices


def start(weights, workdir, devices: int, stop_after: int = 99, **mesh: int):
    """Start a run of six steps, killed after step `stop_after`; `mesh` has the axis sizes."""
    changes = {f'mesh__{axis}': size for axis, size in mesh.items()} | {'data__batch_size': 4}
    # With seed 0, two experts have so similar probabilities for one token that rounding decides.
    changes['seed'] = 1
    command = [sys.executable, '-m', 'tests.helpers.runs', str(weights), str(workdir)]
    return subprocess.run(
        [*command, str(stop_after), 'malora', json.dumps(changes), '--saved'],
        cwd=ROOT,
        env=os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def losses(workdir) -> list[float]:
    return [record['loss'] for record in files.read_json_lines(workdir / 'metrics.jsonl')]


def test_a_run_goes_on_with_other_devices(weights, tmp_path):
    """Four devices, then one, then two in another mesh give the losses of a single device."""
    alone, moved = tmp_path / 'alone', tmp_path / 'moved'
    done = start(weights, alone, 1)
    assert done.returncode == 0, done.stderr
    for devices, stop_after, mesh in (
        (4, 2, dict(fsdp=2, tensor=2)),
        (1, 4, {}),
        (2, 99, dict(expert=2)),
    ):
        done = start(weights, moved, devices, stop_after, **mesh)
        assert done.returncode == (0 if stop_after == 99 else -9), done.stderr
    # Adam, at a learning rate of 0.01, amplifies differences in rounding.
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-4)
    assert len(losses(moved)) == 6


@pytest.mark.parametrize(
    'mesh, message',
    [
        (dict(data=8), 'data.batch_size is 4; it must be a multiple of mesh.data · mesh.fsdp, 8.'),
        (dict(data=1, fsdp=3), 'data.batch_size is 4; it must be a multiple of'),
        (dict(data=1, fsdp=16), 'does not fit 8 devices'),
        (dict(data=1, tensor=8), 'embedding has an axis of size 300, which is not divisible by'),
    ],
)
def test_a_mesh_that_does_not_fit_the_run_is_refused(weights, tmp_path, mesh, message):
    done = start(weights, tmp_path / 'run', 8, **mesh)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / 'run').exists()

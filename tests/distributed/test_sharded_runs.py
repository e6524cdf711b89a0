"""Complete runs on several fake devices, each in a separate process."""

import json
import os
import subprocess
import sys

import pytest

from malora_jax import files
from malora_jax.export.peft import write_peft
from malora_jax.models import preset
from malora_jax.models.loading.base_model import load_base
from tests.export.helpers import restored_model
from tests.helpers.models import random_variables, small_method, tiny_model
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.devices


def start(
    weights, workdir, devices: int, stop_after: int = 99, method='malora', changes=None, **mesh: int
):
    """Start a run of six steps, killed after step `stop_after`; `mesh` has the axis sizes."""
    changes = (changes or {}) | {f'mesh__{axis}': size for axis, size in mesh.items()}
    # With seed 0, two experts have so similar probabilities for one token that rounding decides.
    changes |= {'data__batch_size': 4, 'seed': 1}
    command = [sys.executable, '-m', 'tests.helpers.runs', str(weights), str(workdir)]
    return subprocess.run(
        [*command, str(stop_after), method, json.dumps(changes), '--saved'],
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
    'changes',
    [
        {
            'training__router_start': 'arrow',
            'adapter__scores': 'absolute',
            'adapter__renormalize': True,
            'adapter__frozen': ('down', 'up'),
        },
        {'training__router_start': 'tasks'},
    ],
    ids=['arrow', 'tasks'],
)
def test_experts_that_start_from_loras_are_sharded(weights, tmp_path, changes):
    directories = []
    for rank in (2, 4):
        model = tiny_model(small_method('lora', rank=rank))
        found = restored_model('lora', load_base(preset('tiny'), str(weights)), str(weights))
        variables = random_variables(model, seed=rank) | {'params': found.base.params}
        directories.append(str(tmp_path / f'lora{rank}'))
        write_peft(found._replace(model=model, variables=variables), tmp_path / f'lora{rank}')
    changes = changes | {
        'adapter__num_experts': 2,
        'adapter__rank': 4,
        'training__start_from': ','.join(directories),
    }
    for name, devices, mesh in (('alone', 1, {}), ('sharded', 4, dict(fsdp=2, expert=2))):
        done = start(weights, tmp_path / name, devices, 99, 'molora', changes, **mesh)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / 'sharded') == pytest.approx(losses(tmp_path / 'alone'), rel=1e-4)


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

"""What a plan says about memory, on a program that is compiled for the CPU instead."""

import dataclasses

import jax
import pytest

from configs import intra_domain
from malora_jax.distributed.gpus import GPUS
from malora_jax.distributed.topology import Topology
from malora_jax.training import run_config, topology_compile
from malora_jax.training.topology_compile import compile_for_topology


@pytest.mark.parametrize(
    'share, expected',
    [
        (0.7, {}),
        (0.72, {'environment': {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'}}),
        (0.95, {'fits': False, 'bytes_there_are': int(0.9 * GPUS['h100'].memory_bytes)}),
    ],
)
def test_a_part_of_the_memory_stays_free(share, expected):
    gpu = GPUS['h100']
    found = topology_compile._gpu_limits(gpu, int(share * gpu.memory_bytes))
    assert found == {'checked': True} | expected


def plan(monkeypatch, memory_bytes: float):
    """Return the plan of a step of four rows for a card with this much memory."""
    gpu = dataclasses.replace(GPUS['l4'], memory_gib=memory_bytes / 2**30)
    devices = Topology('l4:1', jax.devices()[:1], gpu)
    monkeypatch.setattr(topology_compile, 'get_topology', lambda name: devices)
    config = intra_domain.get_config('lora')
    config.model.name = 'tiny'
    config.data.batch_size = 4
    return compile_for_topology(run_config(config.to_dict()), 'l4:1')


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_changed_until_it_does(monkeypatch, compile_quickly):
    large = plan(monkeypatch, 1e12)
    assert large['fits'] and 'change' not in large and not large['checked']
    needed = large['bytes_per_device']
    assert needed == sum(large['bytes'].values())
    small = plan(monkeypatch, needed)
    assert not small['fits'] and small['bytes_per_device'] == needed
    assert small['bytes'] == large['bytes'] and small['bytes_there_are'] < needed
    change = small['change']
    assert change.keys() > {'bytes_per_device'}
    # Just enough memory for the changed step, but more than JAX reserves by default.
    tight = plan(monkeypatch, change['bytes_per_device'] / 0.89)['change']
    assert tight == change | {'environment': {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'}}
    assert change['bytes_per_device'] <= small['bytes_there_are']
    assert plan(monkeypatch, 1e6)['change'] is None


@pytest.mark.parametrize(
    'message, needed',
    [
        ('Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded …', 20.5),
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (17.25G) exceeds available HBM (15.75G).',
            17.25,
        ),
    ],
)
def test_a_step_that_the_tpu_compiler_rejects_does_not_fit(monkeypatch, message, needed):
    def reject(run, mesh):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(topology_compile, 'compiled_step', reject)
    found = plan(monkeypatch, 1e12)
    assert (found['fits'], found['change']) == (False, None)
    assert found['bytes_per_device'] == needed * 2**30
    assert found['bytes_there_are'] == 15.75 * 2**30

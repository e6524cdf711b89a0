"""Names of topologies and the table of GPUs; compilation itself has its own tests."""

import re

import pytest

from malora_jax.distributed import topology
from malora_jax.distributed.gpus import GPUS, find_gpu
from malora_jax.errors import UserError


@pytest.fixture
def requested(monkeypatch):
    """Replace the compilers; return the arguments with which topologies are requested."""
    calls = []

    def get_topology_desc(topology_name='', platform=None, **options):
        calls.append((topology_name, platform, options.get('topology')))
        raise NotImplementedError('no compiler')

    monkeypatch.setattr(topology.topologies, 'get_topology_desc', get_topology_desc)
    return calls


@pytest.mark.parametrize(
    'name, request_',
    [
        ('v5e:2x2', ('v5e:2x2', 'tpu', None)),
        ('v5e', ('v5e', 'tpu', None)),
        ('h100:1', ('h100', 'cuda', '1x1x1')),
        ('a100-40gb:8', ('a100-40gb', 'cuda', '1x1x8')),
        ('rtx4090:3', ('rtx4090', 'cuda', '1x1x3')),
        ('h200:16', ('h200', 'cuda', '1x2x8')),
    ],
)
def test_a_name_selects_a_compiler(requested, name, request_):
    with pytest.raises(UserError):
        topology.get_topology(name)
    assert requested == [request_]


@pytest.mark.parametrize(
    'name, message',
    [
        ('b300:8', "--topology is 'b300:8'; it must be GPU:NUMBER with GPU one of a100-40gb, "),
        ('v5e:4', "--topology is 'v5e:4'; it must be GPU:NUMBER with GPU one of a100-40gb, "),
        ('h100', "--topology is 'h100'; it must be h100:NUMBER with 1 to 8 GPUs, or a multiple"),
        ('h100:0', "--topology is 'h100:0'; it must be h100:NUMBER with 1 to 8 GPUs, or a mul"),
        ('h100:2x4', "--topology is 'h100:2x4'; it must be h100:NUMBER with 1 to 8 GPUs"),
        ('l4:12', "--topology is 'l4:12'; it must be l4:NUMBER with 1 to 8 GPUs, or a multiple"),
        ('l4:' + '9' * 5000, "--topology is 'l4:9"),
        ('h100:8', "--topology=h100:8 needs JAX's plugin for CUDA, but no GPU: run pip install"),
        ('gpu', '--topology=gpu cannot be compiled for (no compiler); it must be one that the TPU'),
    ],
)
def test_an_impossible_topology_is_refused_in_one_sentence(requested, name, message):
    with pytest.raises(UserError) as refused:
        topology.get_topology(name)
    assert str(refused.value).startswith(message) and '\n' not in str(refused.value)


# Peak of the tensor cores as a multiple of that of the lanes. The 4090's tensor cores have half the
# speed of the L4's if they add in float32.
TENSOR_CORE_SPEED = {'a100': 16, 'h100': 16, 'h200': 16, 'b200': 32, 'l4': 4, 'rtx4090': 2}


@pytest.mark.parametrize('name', GPUS)
def test_figures_of_a_gpu_agree_with_each_other(name):
    gpu = GPUS[name]
    lanes_tflops = 2 * gpu.multiprocessors * gpu.lanes * gpu.clock_ghz / 1e3
    expected = TENSOR_CORE_SPEED[name.split('-')[0]] * lanes_tflops
    assert gpu.peak_tflops == pytest.approx(expected, rel=0.1)
    assert 20 < gpu.memory_gib < 200 and 300 <= gpu.bandwidth_gb <= 8000


@pytest.mark.parametrize('name', GPUS)
def test_the_text_for_the_compiler_has_the_figures(name):
    gpu = GPUS[name]
    text = gpu.target_config()
    numbers = {field: int(number) for field, number in re.findall(r'(\w+): (\d+)\b(?!\.)', text)}
    assert numbers['device_memory_size'] == gpu.memory_bytes
    assert numbers['core_count'] == gpu.multiprocessors
    assert numbers['shared_memory_per_block_optin'] < numbers['shared_memory_per_core']
    assert text.count('{') == text.count('}') and gpu.product in text


def test_a_card_is_found_by_the_name_that_its_driver_reports():
    assert find_gpu('NVIDIA H100 80GB HBM3') == 'h100'
    assert find_gpu('NVIDIA L4') == 'l4'
    assert find_gpu('NVIDIA L40S') is None and find_gpu('cpu') is None

"""Triton attention compiled for GPUs, without a GPU; `make test-gpu-plan` runs it."""

import pytest

from malora_jax.distributed.topology import disable_device_detection
from malora_jax.models import attention_backends
from tests.helpers.compiled_steps import compile_attention

pytestmark = pytest.mark.gpu

LENGTH, HEADS, KV_HEADS = 1024, 8, 2


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the GPU compiler alone, but not on import, which CPU and TPU tests do as well."""
    disable_device_detection()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('width', attention_backends.HEAD_WIDTHS)
@pytest.mark.parametrize('topology', ['a100-80gb:1', 'h100:1', 'b200:1', 'l4:1'])
def test_the_kernel_compiles(topology, width, dtype):
    """No array has the size of the scores."""
    triton = compile_attention('triton', topology, LENGTH, HEADS, KV_HEADS, width, dtype)
    assert '__gpu$xla.gpu.triton' in triton.as_text()
    assert triton.memory_analysis().temp_size_in_bytes < 2 * HEADS * LENGTH**2

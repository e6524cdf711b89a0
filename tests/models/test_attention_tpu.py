"""Splash attention compiled for TPUs, without a TPU; `make test-tpu` runs it."""

import pytest

from malora_jax.distributed.topology import disable_device_detection
from malora_jax.models import attention_backends
from tests.helpers.compiled_steps import compile_attention

pytestmark = pytest.mark.tpu

LENGTH, HEADS, KV_HEADS = 1024, 8, 2


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the TPU compiler alone, but not on import, which CPU and GPU tests do as well."""
    disable_device_detection()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('width', attention_backends.HEAD_WIDTHS)
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2'])
def test_the_kernel_compiles(topology, width, dtype):
    """Forward and backward pass are three kernels, and no array has the size of the scores."""
    splash = compile_attention('splash', topology, LENGTH, HEADS, KV_HEADS, width, dtype)
    assert splash.as_text().count('custom_call_target="tpu_custom_call"') == 3
    assert splash.memory_analysis().temp_size_in_bytes < HEADS * LENGTH**2

"""Splash attention compiled for TPUs, without a TPU; `make test-tpu` runs it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from malora_jax.benchmark.attention_check import Packing, value_and_gradients
from malora_jax.distributed.topology import disable_tpu_detection, tpu_devices
from malora_jax.models import attention_backends

pytestmark = pytest.mark.tpu

ROWS, LENGTH, HEADS, KV_HEADS = 1, 1024, 8, 2


@pytest.fixture(scope='module', autouse=True)
def compiler_alone():
    """Use the TPU compiler alone, but not on import, which CPU and GPU tests do as well."""
    disable_tpu_detection()


@functools.cache
def compiled(backend: str, topology: str, width: int, dtype: str) -> jax.stages.Compiled:
    place = jax.sharding.SingleDeviceSharding(tpu_devices(topology)[0])

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((ROWS, LENGTH, heads, width), dtype, sharding=place)

    segments = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=place)
    packing = Packing(shape(HEADS), shape(KV_HEADS), shape(KV_HEADS), segments, shape(HEADS))
    function = functools.partial(attention_backends.attend, backend)
    return value_and_gradients.lower(function, packing).compile()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('width', attention_backends.HEAD_WIDTHS)
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2'])
def test_the_kernel_compiles(topology, width, dtype):
    """Forward and backward pass are three kernels, and no array has the size of the scores."""
    splash = compiled('splash', topology, width, dtype)
    assert splash.as_text().count('custom_call_target="tpu_custom_call"') == 3
    assert splash.memory_analysis().temp_size_in_bytes < HEADS * LENGTH**2

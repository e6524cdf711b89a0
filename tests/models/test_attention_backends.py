"""Attention backends against float64, their choice, and what rematerialization keeps of them."""

import contextlib
import functools
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from malora_jax.benchmark import attention_check
from malora_jax.benchmark.attention_check import TOLERANCES, random_packing
from malora_jax.distributed.mesh import MeshConfig, use_mesh
from malora_jax.errors import UserError
from malora_jax.models import Decoder, attention_backends, preset, verified_kernels
from malora_jax.models.attention_backends import HEAD_WIDTHS, KERNELS, choose
from tests.helpers.models import packed_batch, random_variables

DTYPES = (jnp.float32, jnp.bfloat16)
CPU = types.SimpleNamespace(platform='cpu', device_kind='cpu')
TPU = types.SimpleNamespace(platform='tpu', device_kind='TPU v5 lite')
H100 = types.SimpleNamespace(
    platform='gpu', device_kind='NVIDIA H100 80GB HBM3', compute_capability='9.0'
)
V100 = types.SimpleNamespace(platform='gpu', device_kind='Tesla V100', compute_capability='7.0')
MI300 = types.SimpleNamespace(platform='gpu', device_kind='MI300X', compute_capability='gfx942')
# Query heads and key heads, and a length that is no multiple of a block.
SHAPES = {64: (8, 1), 128: (4, 2)}
LENGTH = 300


@pytest.fixture
def interpreted(monkeypatch):
    """Interpret the kernels, so that they run on a CPU."""
    for name, kernel in KERNELS.items():
        monkeypatch.setitem(KERNELS, name, functools.partial(kernel, interpret=True))


def small_packing(dtype) -> attention_check.Packing:
    """Return two rows of up to eight segments, with two query heads for one key head."""
    return random_packing(
        np.random.default_rng(0),
        length=256,
        max_segments=8,
        num_heads=2,
        num_kv_heads=1,
        head_width=64,
        dtype=dtype,
    )


@pytest.mark.parametrize('width', HEAD_WIDTHS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_values_and_gradients_are_those_of_float64(backend, dtype, width):
    """`tests/fuzz/test_attention_kernels.py` draws more shapes."""
    rng, (num_heads, num_kv_heads) = np.random.default_rng(width), SHAPES[width]
    for max_segments in (1, 64):
        packing = random_packing(
            rng,
            length=LENGTH,
            max_segments=max_segments,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_width=width,
            dtype=dtype,
        )
        found = attention_check.errors(backend, packing, interpret=True)
        tolerance = TOLERANCES[backend, jnp.dtype(dtype).name]
        assert max(found.values()) < tolerance, found


@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_single_tokens_have_no_gradient_of_their_scores(backend):
    """A token that attends to itself alone has a weight of 1, even if all values are rounded."""
    packing = small_packing(jnp.bfloat16)
    rows, length = packing.segments.shape
    tokens = jnp.arange(rows * length, dtype=jnp.int32)
    alone = packing._replace(segments=tokens.reshape(rows, length))
    found = attention_check.errors(backend, alone, interpret=True)
    assert max(found['dq'], found['dk']) < 1e-4, found


@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_a_backend_that_ignores_segments_is_found(backend):
    """Every output exceeds even the tolerance of bfloat16 by far."""
    packing = small_packing(jnp.float32)
    whole = packing._replace(segments=jnp.ones_like(packing.segments))
    function = attention_check.attention_function(backend, interpret=True)
    found = attention_check.relative_errors(
        attention_check.value_and_gradients(function, whole), attention_check.reference(packing)
    )
    assert min(found.values()) > 10 * TOLERANCES[backend, 'bfloat16'], found


@pytest.mark.parametrize(
    'device, width, backend, reason',
    [
        (CPU, 64, 'xla', 'no kernel for cpu'),
        (V100, 64, 'xla', 'no kernel for Tesla V100'),
        (MI300, 64, 'xla', 'no kernel for MI300X'),
        (TPU, 64, 'splash', f'verified on a CPU with JAX {jax.__version__}'),
        (H100, 128, 'triton', f'verified on a CPU with JAX {jax.__version__}'),
        (TPU, 16, 'xla', 'splash is not tested with heads of width 16'),
    ],
)
def test_auto_takes_the_kernel_for_the_device(monkeypatch, device, width, backend, reason):
    versions = {name: (jax.__version__,) for name in KERNELS}
    monkeypatch.setattr(attention_backends, 'VERIFIED_VERSIONS', versions)
    assert choose('auto', width, device) == (backend, reason)


def test_auto_takes_only_a_verified_kernel(monkeypatch):
    monkeypatch.setattr(attention_backends, 'VERIFIED_VERSIONS', {'splash': ('0.1.0',)})
    reason = f'is not verified with JAX {jax.__version__}'
    assert choose('auto', 64, TPU) == ('xla', f'splash {reason}')
    assert choose('auto', 64, H100) == ('xla', f'triton {reason}')
    assert choose('splash', 64, TPU).reason == (
        f'set by model.attention; not verified with JAX {jax.__version__}'
    )


def test_auto_takes_xla_on_a_mesh_with_other_axes(monkeypatch, interpreted):
    """Kernels run in `jax.shard_map`, which needs to know what each axis splits."""
    monkeypatch.setattr(attention_backends, 'VERIFIED_VERSIONS', {'splash': (jax.__version__,)})
    monkeypatch.setattr(attention_backends, 'kernel_of', lambda device: 'splash')
    shape = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, 128), jnp.int32)

    def has_kernel() -> bool:
        attend = functools.partial(attention_backends.attend, 'auto')
        jaxpr = jax.make_jaxpr(attend)(shape, shape, shape, segments).jaxpr
        return any(True for _ in kernel_names(jaxpr))

    assert has_kernel()
    with jax.set_mesh(jax.make_mesh((1,), ('other',))):
        assert not has_kernel()


def test_every_kernel_has_a_line_in_the_table_of_versions():
    assert verified_kernels.VERIFIED_VERSIONS.keys() == KERNELS.keys()


@pytest.mark.parametrize(
    'backend, device, width, message',
    [
        ('splash', CPU, 64, "model.attention is 'splash'; it must be 'auto' or 'xla' on cpu."),
        ('triton', TPU, 64, "is 'triton'; it must be 'auto', 'xla' or 'splash' on TPU v5 lite."),
        ('splash', TPU, 80, "is 'splash'; it must be 'auto' or 'xla' for heads of width 80."),
    ],
)
def test_a_kernel_that_does_not_run_is_refused(backend, device, width, message):
    with pytest.raises(UserError, match=message):
        choose(backend, width, device)


def test_xla_is_possible_everywhere():
    for device in (CPU, TPU, H100):
        assert choose('xla', 80, device) == ('xla', 'set by model.attention')
    assert str(choose('xla', 80, CPU)) == 'Attention backend: xla (set by model.attention).'


def small_decoder(backend: str, remat: str = 'none') -> Decoder:
    return Decoder(preset('tiny', head_width=64), remat=remat, attention=backend)


@pytest.mark.parametrize('backend', KERNELS)
def test_a_decoder_computes_the_same_with_a_kernel(backend, interpreted):
    """In training, and in the prefill of a KV cache, which also returns the keys and values."""
    batch = packed_batch([(10, 9), (7, 8, 9)], 24)
    inputs = batch['inputs'], batch['positions'], batch['segment_ids']
    models = [small_decoder(each) for each in ('xla', backend)]
    variables = random_variables(models[0])
    for return_kv in (False, True):
        expected, found = (
            jax.jit(functools.partial(model.apply, return_kv=return_kv))(variables, *inputs)
            for model in models
        )
        for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mesh', [None, MeshConfig()])
@pytest.mark.parametrize('remat, runs', [('none', 1), ('light', 1), ('full', 2)])
@pytest.mark.parametrize('backend', KERNELS)
def test_remat_keeps_what_a_kernel_saves(backend, remat, runs, mesh, interpreted):
    """Only 'full' runs the forward kernel of a layer a second time; in `jax.shard_map` too."""
    model, tokens = small_decoder(backend, remat), jnp.ones((2, 128), jnp.int32)
    variables = random_variables(model)

    def loss(embedding):
        params = variables['params'] | {'embedding': embedding}
        return model.apply({'params': params}, tokens, tokens, tokens)[0].sum()

    with use_mesh(mesh, 2) if mesh else contextlib.nullcontext():
        jaxpr = jax.make_jaxpr(jax.grad(loss))(variables['params']['embedding']).jaxpr
    names = list(kernel_names(jaxpr))
    assert sum('_forward' in name or '_fwd' in name for name in names) == runs, names


def kernel_names(jaxpr) -> Iterator[str]:
    """Yield the names of the kernels, except those in calls without results, which XLA removes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call':
            yield equation.params['name']
        elif equation.outvars:
            for inner in jaxprs_in_params(equation.params):
                yield from kernel_names(inner)

"""Quantized kernels: their error, their products, and that none stays dequantized."""

import functools
import statistics
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malora_jax.errors import UserError
from malora_jax.export.merge import dequantized_params
from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import REMAT_POLICIES, abstract_variables
from malora_jax.models.generate import Generator
from malora_jax.models.loading.base_model import load_base
from malora_jax.models.quantize import (
    QUANT_FORMATS,
    QuantizedKernel,
    codes_dtype,
    quantize,
    quantized_matmul,
    quantized_shapes,
)
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.state import create_state
from malora_jax.training.step import abstract_batch, losses, make_train_step
from tests.helpers.models import (
    packed_batch,
    prompts,
    random_variables,
    small_method,
    tiny_model,
)
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow

# All codes in order: 0 to 7 in the lower bits, 8 to 15 in the upper bits.
NF4 = QuantizedKernel(
    jnp.asarray([i | i + 8 << 4 for i in range(8)], jnp.uint8)[:, None], jnp.ones((2, 1)), 'nf4'
)


def kernel(inputs: int, outputs: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (inputs, outputs)) * 0.1


@pytest.mark.parametrize('kind, steps', [('int8', 127.5), ('int4', 7.5)])
def test_integers_are_the_nearest_of_even_steps(kind, steps):
    kernel_DF = kernel(192, 40)
    found = quantize(kind, kernel_DF)
    S = quantized_shapes(kind, 192, 40)[1][0]
    tiled = np.asarray(kernel_DF, np.float64).reshape(S, -1, 40)
    step_S1F = np.abs(tiled).max(axis=1, keepdims=True) / steps
    error = np.abs(np.asarray(found.dequantize(), np.float64).reshape(tiled.shape) - tiled)
    assert (error <= step_S1F * 0.5 + 1e-7).all()
    assert error.max() > 0.3 * step_S1F.min()
    assert found.codes.dtype == codes_dtype(kind) and found.scale.shape == (S, 40)


def test_nf4_has_the_quantiles_of_a_normal_distribution():
    """The values are means of the quantiles at both ends of 16 equal parts, scaled to 1."""
    offset = (1 / 30 + 1 / 32) / 2
    normal = statistics.NormalDist().inv_cdf
    above = [normal(p) for p in np.linspace(1 - offset, 0.5, 9)[:-1]]
    below = [-normal(p) for p in np.linspace(1 - offset, 0.5, 8)[:-1]]
    quantiles = np.sort([*above, 0.0, *below]) / max(above)
    np.testing.assert_allclose(NF4.dequantize()[:, 0], quantiles, atol=1e-3)


def test_nf4_is_the_nearest_of_its_quantiles():
    kernel_DF = kernel(128, 24)
    found = quantize('nf4', kernel_DF)
    tiled = np.asarray(kernel_DF, np.float64).reshape(2, 64, 24)
    largest_S1F = np.abs(tiled).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.scale[:, None], largest_S1F, rtol=1e-6)
    quantiles = np.asarray(NF4.dequantize(), np.float64)[:, 0]
    nearest = quantiles[np.abs((tiled / largest_S1F)[..., None] - quantiles).argmin(axis=-1)]
    right = (nearest * largest_S1F).reshape(128, 24)
    np.testing.assert_allclose(found.dequantize(), right, atol=2e-6)


def test_tiles_divide_the_inputs():
    found = [quantized_shapes('nf4', inputs, 5) for inputs in (64, 96, 576, 11008)]
    assert found == [((C, 5), (S, 5)) for C, S in ((32, 2), (48, 6), (288, 18), (5504, 172))]
    assert quantized_shapes('int8', 576, 5) == ((576, 5), (1, 5))
    with pytest.raises(UserError, match='a linear with 63 inputs: use int8'):
        quantized_shapes('int4', 63, 5)


@pytest.mark.parametrize('kind', ['int8', 'int4', 'nf4'])
@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 2e-2)])
def test_products_and_their_gradient_are_those_of_the_values(kind, dtype, tolerance):
    x_ND = jax.random.normal(jax.random.key(1), (11, 96)).astype(dtype)
    dy_NF = jax.random.normal(jax.random.key(2), (11, 40)).astype(dtype)
    found = quantize(kind, kernel(96, 40))

    def pulled(function):
        y_NF, pull = jax.vjp(function, x_ND)
        return y_NF, pull(dy_NF)[0]

    def dense(x_ND):
        return (x_ND.astype(jnp.float32) @ found.dequantize()).astype(dtype)

    both = zip(pulled(lambda x: quantized_matmul(x, found)), pulled(dense), strict=True)
    for ours, expected in both:
        assert ours.dtype == dtype
        right = np.asarray(expected, np.float32)
        largest = np.abs(right).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), right, atol=tolerance * largest)


def test_int8_products_of_whole_numbers_are_exact():
    """Rows with maximum 127 have scale 1, and so does a kernel of integer codes."""
    rng = np.random.default_rng(0)

    def whole(*shape):
        array = rng.integers(-127, 128, shape)
        array[:, 0] = 127
        return jnp.asarray(array, jnp.float32)

    x_ND, dy_NF = whole(9, 64), whole(9, 40)
    kernel = QuantizedKernel(whole(64, 40).astype(jnp.int8), jnp.ones((1, 40)), 'w8a8')
    y_NF, pull = jax.vjp(lambda x: quantized_matmul(x, kernel), x_ND)
    np.testing.assert_array_equal(y_NF, np.asarray(x_ND) @ np.asarray(kernel.codes, np.float32))
    right = np.asarray(dy_NF) @ np.asarray(kernel.codes, np.float32).T
    np.testing.assert_array_equal(pull(dy_NF)[0], right)
    zero = jnp.zeros_like(x_ND)
    np.testing.assert_array_equal(quantized_matmul(zero, kernel), jnp.zeros_like(y_NF))


def test_int8_products_err_by_half_a_step_of_each_number():
    x_ND, dy_NF = (jax.random.normal(jax.random.key(i), (9, n)) for i, n in ((1, 64), (2, 40)))
    found = quantize('w8a8', kernel(64, 40))
    y_NF, pull = jax.vjp(lambda x: quantized_matmul(x, found), x_ND)
    values_DF = np.asarray(found.dequantize(), np.float64)

    def check(ours, given, matrix, weight=1.0):
        given = np.asarray(given, np.float64) * weight
        step_N1 = np.abs(given).max(axis=1, keepdims=True) / 127
        bound = step_N1 / 2 * np.abs(matrix).sum(axis=0) * 1.001 + 1e-5
        error = np.abs(np.asarray(ours) - given @ matrix)
        assert (error <= bound).all() and error.max() > 1e-4

    check(y_NF, x_ND, values_DF)
    check(pull(dy_NF)[0], dy_NF, np.asarray(found.codes, np.float64).T, np.asarray(found.scale))


def test_no_product_with_an_int8_kernel_leaves_int8():
    found = quantize('w8a8', kernel(64, 40))

    def gradient(x_ND):
        return jax.grad(lambda x: quantized_matmul(x, found).sum())(x_ND)

    text = str(jax.make_jaxpr(gradient)(jnp.ones((3, 64), jnp.bfloat16)))
    assert text.count('preferred_element_type=int32') == text.count('dot_general') > 0


def quantized(kind: str, method: str):
    """Return a tiny model with quantized kernels, and one with the dequantized kernels."""
    adapter = small_method(method)
    plain = tiny_model(adapter)
    model = tiny_model(adapter, quantize=kind)
    variables = random_variables(plain, seed=2)
    layers = {}
    for part, linears in variables['params']['layers'].items():
        layers[part] = {}
        for name, leaves in linears.items() if part in ('attention', 'mlp') else ():
            codes = jax.vmap(lambda k: quantize(kind, k))(leaves['kernel'])
            layers[part][name] = {'kernel': codes.codes, 'kernel_scale': codes.scale}
        layers[part] = layers[part] or linears
    ours = variables | {'params': variables['params'] | {'layers': layers}}
    expected = variables | {'params': dequantized_params(model.config, ours['params'])}
    assert jax.tree.structure(expected) == jax.tree.structure(variables)
    return model, ours, plain, expected


@pytest.mark.usefixtures('compile_quickly')
@pytest.mark.parametrize(
    'kind, method', [('int8', 'dora'), ('int4', 'lora'), ('nf4', 'malora'), ('nf4', 'dora')]
)
def test_losses_and_gradients_are_those_of_the_values(kind, method):
    model, ours, plain, expected = quantized(kind, method)
    batch = jax.tree.map(jnp.asarray, packed_batch([[20, 9], [31]], 32))

    def gradient(model, variables):
        def total(adapter):
            return losses(model, variables | {'adapter': adapter}, batch, 2).nll.sum()

        return jax.jit(jax.value_and_grad(total))(variables['adapter'])

    (loss, found), (right, wanted) = gradient(model, ours), gradient(plain, expected)
    np.testing.assert_allclose(loss, right, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()) + 1e-6)


@pytest.mark.usefixtures('compile_quickly')
def test_activations_in_int8_change_little():
    """Kernels are as in int8; rounding activations to 255 steps changes losses a little."""
    batch = jax.tree.map(jnp.asarray, packed_batch([[20, 9], [31]], 32))
    found = []
    for kind in ('int8', 'w8a8'):
        model, variables, *_ = quantized(kind, 'malora')

        def total(adapter, model=model, variables=variables):
            return losses(model, variables | {'adapter': adapter}, batch, 2).nll.sum()

        loss, gradient = jax.jit(jax.value_and_grad(total))(variables['adapter'])
        found.append((loss, np.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])))
    (right, wanted), (loss, gradient) = found
    assert 0 < abs(loss / right - 1) < 0.02
    cosine = gradient @ wanted / np.linalg.norm(gradient) / np.linalg.norm(wanted)
    assert 0.9 < cosine < 1


@pytest.mark.parametrize('kind', QUANT_FORMATS)
def test_what_is_loaded_are_the_codes_of_the_weights(tmp_path, kind):
    path = tmp_path / 'tiny.gguf'
    write_tiny_gguf(path)
    plain = load_base(preset('tiny'), str(path)).params
    found = load_base(preset('tiny', quantize=kind), str(path)).params
    assert found['layers']['mlp']['down']['kernel'].dtype == codes_dtype(kind)
    for part, name in (('attention', 'k'), ('mlp', 'down')):
        for layer in range(2):
            right = quantize(kind, plain['layers'][part][name]['kernel'][layer])
            leaves = jax.tree.map(lambda x, layer=layer: x[layer], found['layers'][part][name])
            np.testing.assert_array_equal(leaves['kernel'], right.codes)
            np.testing.assert_array_equal(leaves['kernel_scale'], right.scale)
    np.testing.assert_array_equal(found['embedding'], plain['embedding'])


@pytest.mark.usefixtures('compile_quickly')
@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_texts_are_those_of_the_values(kind):
    model, ours, plain, expected = quantized(kind, 'malora')
    questions = prompts(5, 9, 17)
    texts = [
        Generator(each, 299, batch_size=2, max_new_tokens=6)(variables, questions)
        for each, variables in ((model, ours), (plain, expected))
    ]
    assert texts[0] == texts[1]


@functools.cache
def wide_step(kind: str, remat: str):
    """Return the memory use of a compiled step with kernels far larger than everything else."""
    config = preset('tiny', width=256, hidden=1024, num_layers=8, quantize=kind)
    model = Decoder(config, small_method('lora'), remat)
    params = nn.unbox(abstract_variables(model))['params']
    optimizer = optax.sgd(1e-2)
    state = jax.eval_shape(lambda params: create_state(model, optimizer, 0, params), params)
    step = make_train_step(model, optimizer, optax.constant_schedule(1.0), 1)
    numbers = OptimizerConfig(1e-2, 0.0, 'linear', 0.0, 1.0)
    given = Hyperparameters.from_configs(0, numbers, model.adapter)
    return step.lower(state, params, abstract_batch(1, 8), given).compile().memory_analysis()


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
@pytest.mark.parametrize('remat', REMAT_POLICIES)
def test_no_kernel_is_kept_as_numbers_from_one_layer_to_the_next(kind, remat):
    """If JAX differentiated the scan, the backward pass would keep all dequantized kernels."""
    found, plain = (wide_step(each, remat).temp_size_in_bytes for each in (kind, ''))
    kernel = 4 * 256 * 1024  # Bytes of the largest kernel in float32.
    assert found < plain + 2 * kernel


def test_arguments_are_as_small_as_the_codes():
    sizes = {kind: wide_step(kind, 'light').argument_size_in_bytes for kind in ('', 'int8', 'nf4')}
    kernels = 8 * (2 * 256 * 64 + 2 * 256 * 32 + 3 * 256 * 1024)
    assert sizes[''] - sizes['int8'] == pytest.approx(3 * kernels, rel=0.02)
    # Half a byte per weight, and a 4-byte scale per 64 weights.
    assert sizes[''] - sizes['nf4'] == pytest.approx((3.5 - 1 / 16) * kernels, rel=0.02)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"Unknown model\.quantize 'int3'"):
        preset('tiny', quantize='int3')


def test_without_the_package_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'qwix', None)
    quantize.clear_cache()
    with pytest.raises(UserError, match=r"pip install '\.\[quantize\]'"):
        quantize('int8', kernel(8, 8))

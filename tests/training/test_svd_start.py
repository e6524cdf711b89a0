"""Runs whose experts start from the frozen kernels: GOAT's leaves, their cache, and resuming."""

import jax
import numpy as np
import pytest

from malora_jax import training
from malora_jax.adapters import trees
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.base_model import load_base
from malora_jax.models.quantize import QuantizedKernel
from malora_jax.training import svd_start, training_run
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import TrainState, create_state
from tests.helpers.interrupted_runs import assert_runs_are_equal, train_until
from tests.helpers.models import logits_of, prompts, small_method
from tests.helpers.runs import toy_run_config
from tests.helpers.steps import ADAMW

pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Empty directory of caches."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def decompositions(monkeypatch):
    """Shapes of the kernels that are decomposed during a test."""
    shapes, decompose = [], svd_start.singular_directions

    def recorded(kernel_DF, indices_P):
        shapes.append(kernel_DF.shape)
        return decompose(kernel_DF, indices_P)

    monkeypatch.setattr(svd_start, 'singular_directions', recorded)
    return shapes


def started(weights, quantize: str = '', **changes) -> tuple[Decoder, TrainState, dict]:
    config = preset('tiny', quantize=quantize)
    params = load_base(config, str(weights)).params
    model = Decoder(config, small_method('goat', **changes))
    fresh = create_state(model, make_optimizer(ADAMW, 10), 0, params)
    return model, svd_start.svd_start(fresh, model, params), params


def kernels(params, target: str, quantize: str) -> np.ndarray:
    linear = params['layers'][trees.parent_module(target)][target]
    if not quantize:
        return np.asarray(linear['kernel'], np.float64)
    stacked = QuantizedKernel(linear['kernel'], linear['kernel_scale'], quantize)
    return np.asarray(jax.vmap(QuantizedKernel.dequantize)(stacked), np.float64)


@pytest.mark.parametrize('quantize', ['', 'int8', 'nf4'])
def test_leaves_of_every_layer_are_those_of_its_kernel(tiny_weights, quantize):
    model, state, params = started(tiny_weights, quantize)
    E, R = model.adapter.num_experts, model.adapter.structure.rank
    for target in model.adapter.targets:
        leaves = trees.linear_leaves(state.variables(params), target)
        for layer, kernel_DF in enumerate(kernels(params, target, quantize)):
            U, sigma, Vt = np.linalg.svd(kernel_DF.T, full_matrices=False)
            s = np.sqrt(3 * (0.7 / (2 * R)) ** 2 * len(kernel_DF) / R)
            for t in range(E):
                first = t * (len(sigma) // E)
                part = U[:, first : first + R] * sigma[first : first + R] @ Vt[first : first + R]
                found = leaves['up'][layer, t].T @ leaves['down'][layer, t].T
                np.testing.assert_allclose(found, part / (s * 10), atol=2e-6 * np.abs(found).max())
        np.testing.assert_array_equal(leaves['residual_down'], leaves['down'])
        np.testing.assert_array_equal(leaves['residual_up'], leaves['up'])
        assert leaves['router'].any()


def test_the_model_starts_as_the_base_if_gates_are_equal(tiny_weights):
    """Without the residual, the model differs; the parameters of the base are untouched."""
    model, state, params = started(tiny_weights, top_k=4)
    before = {path: np.array(leaf) for path, leaf in trees.named_leaves(params)}
    tokens = np.asarray(prompts(9, 9))

    def logits(change) -> np.ndarray:
        changed = jax.tree_util.tree_map_with_path(change, state.variables(params))
        return logits_of(model, changed, tokens)

    def equal_gates(path, leaf):
        return 0 * leaf if path[-1].key == 'router' else leaf

    def no_residual(path, leaf):
        return 0 * leaf if path[-1].key in ('router', 'residual_up') else leaf

    base = logits_of(Decoder(model.config), {'params': params}, tokens)
    size = np.abs(logits(no_residual) - base).max()
    assert size > 1e-3 * np.abs(base).max()
    np.testing.assert_allclose(logits(equal_gates), base, rtol=0, atol=1e-3 * size)
    for path, leaf in trees.named_leaves(params):
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_a_second_run_reads_the_cache(tiny_weights, decompositions, cache):
    _, first, _ = started(tiny_weights)
    assert len(decompositions) == 6 * 2
    # Another scale needs no other decomposition.
    _, second, _ = started(tiny_weights)
    started(tiny_weights, alpha=3.0)
    assert len(decompositions) == 6 * 2
    jax.tree.map(np.testing.assert_array_equal, first, second)
    started(tiny_weights, rank=2)
    assert len(decompositions) == 2 * 6 * 2
    broken = next(cache.rglob('gate.safetensors'))
    broken.write_bytes(broken.read_bytes()[:100])
    started(tiny_weights, rank=2)
    started(tiny_weights)
    assert len(decompositions) == (2 * 6 + 1) * 2
    assert not [path for path in cache.rglob('*') if path.name.startswith('.')]


def test_a_cache_that_cannot_be_written(tiny_weights, decompositions, cache, capsys):
    cache.write_text('a file')
    started(tiny_weights)
    assert len(decompositions) == 6 * 2
    assert 'The singular directions are not cached: ' in capsys.readouterr().out


def config_of(weights):
    return toy_run_config(weights, 'goat')


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_weights, tmp_path, monkeypatch):
    """It takes all leaves from the checkpoint, and decomposes nothing."""
    results = training.train(config_of(tiny_weights), tmp_path / 'whole')
    assert results['parameters']['frozen_in_adapter'] > 0
    train_until(config_of(tiny_weights), tmp_path / 'stopped', step=4)
    monkeypatch.setattr(training_run, 'svd_start', None)
    training.train(config_of(tiny_weights), tmp_path / 'stopped')
    whole = assert_runs_are_equal(config_of(tiny_weights), tmp_path / 'whole', tmp_path / 'stopped')
    # The residual is that of the start, and the experts have left it.
    leaves = trees.linear_leaves(whole.variables({}), 'q')
    assert leaves['residual_up'].any()
    assert (np.asarray(leaves['residual_up']) != leaves['up']).mean() > 0.9

"""Runs whose state has more than trained leaves, or that sample: resumed runs end as whole ones."""

import numpy as np
import pytest

from malora_jax import training
from malora_jax.adapters.routers import BALANCE_BIAS
from malora_jax.adapters.trees import linear_leaves
from tests.helpers.interrupted_runs import assert_runs_are_equal, train_until
from tests.helpers.runs import STEPS, toy_run_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

CHANGES = {
    'smora': {'adapter__rank': 1, 'adapter__shared_rank': 4, 'adapter__top_k': 2},
    'remix': {},
    'mlora_heads': {'adapter__rank': 3, 'adapter__shared_rank': 3, 'adapter__top_k': 4},
    'molora': {'adapter__dropout_masks': 'expert'},
    'comol': {
        'adapter__rank': 3,
        'adapter__shared_rank': 3,
        'adapter__top_k': 4,
        'adapter__core_dropout': 0.2,
    },
}


@pytest.mark.parametrize('method', CHANGES)
def test_a_resumed_run_equals_an_uninterrupted_one(method, tiny_weights, tmp_path):
    config = toy_run_config(tiny_weights, method, **CHANGES[method])
    training.train(config, tmp_path / 'whole')
    train_until(config, tmp_path / 'stopped', step=4)
    training.train(config, tmp_path / 'stopped')
    state = assert_runs_are_equal(config, tmp_path / 'whole', tmp_path / 'stopped')
    if method == 'smora':
        bias_LE = np.abs(linear_leaves(state.variables({}), 'q')[BALANCE_BIAS])
        assert 0 < bias_LE.max() <= STEPS * 1.001e-5
    if method == 'mlora_heads':
        leaves = linear_leaves(state.variables({}), 'q')
        assert np.abs(leaves['shared_down'] - leaves['residual_down']).max() > 0
        assert np.abs(leaves['up'].sum(axis=1) - leaves['residual_up']).max() > 0

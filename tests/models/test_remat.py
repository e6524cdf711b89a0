"""Rematerialised layers give what kept activations give: loss, routing and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import packed_batch, random_variables, small_method, tiny_model

from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder
from malora_jax.training.step import losses, mean_balance_loss

BATCH = jax.tree.map(jnp.asarray, packed_batch([(10, 9), (7, 8, 9)], 24))


def models(name: str, **overrides) -> tuple[Decoder, Decoder]:
    """The model as it is and with rematerialised layers, with dropout on."""
    kept = tiny_model(small_method(name, dropout=0.5), **overrides)
    return kept, Decoder(kept.config, kept.adapter, remat=True)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model: Decoder, variables):
    def total(adapter):
        found = losses(model, variables | {'adapter': adapter}, BATCH, 2, jax.random.key(4))
        return found.nll.sum() + mean_balance_loss(found.routing), found

    return jax.value_and_grad(total, has_aux=True)(variables['adapter'])


@pytest.mark.parametrize('name', ['lora', 'dora', 'molora', 'malora', 'malora_shared_up'])
def test_remat_equals_no_remat(name):
    kept, again = models(name)
    variables = random_variables(kept)
    assert jax.tree.structure(random_variables(again)) == jax.tree.structure(variables)
    (expected, expected_sums), right_gradients = loss_and_gradients(kept, variables)
    (found, found_sums), gradients = loss_and_gradients(again, variables)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for ours, right in zip(
        jax.tree.leaves(found_sums), jax.tree.leaves(expected_sums), strict=True
    ):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(gradients) == jax.tree.structure(right_gradients)
    for (path, ours), (_, right) in zip(
        named_leaves(gradients), named_leaves(right_gradients), strict=True
    ):
        assert np.abs(right).max() > 1e-3, path
        np.testing.assert_allclose(
            ours, right, rtol=1e-4, atol=1e-5 * np.abs(right).max(), err_msg=path
        )


def test_remat_keeps_less_in_memory():
    kept, again = (
        loss_and_gradients.lower(model, random_variables(model)).compile().memory_analysis()
        for model in models('lora', num_layers=12)
    )
    assert again.temp_size_in_bytes < 0.5 * kept.temp_size_in_bytes

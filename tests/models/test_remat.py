"""Rematerialization (gradient checkpointing) keeps the loss, routing and gradients."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters.load_balancing import mean_balance_loss
from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder
from malora_jax.models.decoder import REMAT_POLICIES
from malora_jax.training.step import losses
from tests.helpers.jaxprs import equations
from tests.helpers.models import packed_batch, random_variables, small_method, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

BATCH = jax.tree.map(jnp.asarray, packed_batch([(10, 9), (7, 8, 9)], 24))


# Dropout masks of published code.
FORMS = {
    'masks of experts': ('alora', {'dropout_masks': 'expert'}),
    'router after dropout': ('smora', {'router_dropout': True}),
    'masks of cores': ('comol', {'core_dropout': 0.5}),
}


def models(name: str, **overrides) -> dict[str, Decoder]:
    """Return the model with each rematerialization mode, with dropout."""
    method, changes = FORMS.get(name, (name, {}))
    model = tiny_model(small_method(method, dropout=0.5, **changes), **overrides)
    return {remat: Decoder(model.config, model.adapter, remat) for remat in REMAT_POLICIES}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model: Decoder, variables):
    def total(adapter):
        found = losses(model, variables | {'adapter': adapter}, BATCH, 2, jax.random.key(4))
        return found.nll.sum() + mean_balance_loss(found.routing, model.adapter), found

    return jax.value_and_grad(total, has_aux=True)(variables['adapter'])


@pytest.mark.parametrize('remat', ['light', 'full'])
@pytest.mark.parametrize(
    'name',
    ['lora', 'dora', 'molora', 'malora', 'malora_shared_up', 'd2mora', 'mlora_heads', *FORMS],
)
def test_remat_equals_no_remat(name, remat):
    kept, again = (models(name)[key] for key in ('none', remat))
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


def compiled(model: Decoder) -> jax.stages.Compiled:
    return loss_and_gradients.lower(model, random_variables(model)).compile()


def test_remat_keeps_less_in_memory():
    none, light, full = (
        compiled(model).memory_analysis().temp_size_in_bytes
        for model in models('lora', num_layers=12).values()
    )
    assert full < 0.7 * light < 0.5 * none


def products(model: Decoder) -> collections.Counter[str]:
    """Return the number of matrix products of each shape in the gradient of a layer."""
    closed = jax.make_jaxpr(lambda v: loss_and_gradients(model, v))(random_variables(model))
    return collections.Counter(
        ' '.join(str(var.aval) for var in (*equation.invars, *equation.outvars))
        for equation, _ in equations(closed.jaxpr)
        if equation.primitive.name == 'dot_general'
    )


@pytest.mark.parametrize('name', ['lora', 'dora', 'malora'])
def test_light_computes_no_product_of_a_linear_again(name):
    """`light` only recomputes the widening of gates; `full` has the products of linears twice."""
    none, light, full = (products(model) for model in models(name).values())
    widened = {'malora': {'float32[48,4] float32[4,16] float32[48,16]': 6}}
    assert light - none == widened.get(name, {})
    assert (full - none)['float32[48,64] float32[64,96] float32[48,96]'] == 2  # Gate and up.

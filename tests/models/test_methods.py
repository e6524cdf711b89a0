"""Every method in the decoder: compared with float64 numpy, without jit, and in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from malora_jax.adapters import AdapterConfig, AdapterSettings
from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.settings import SUBSPACES
from malora_jax.models import Decoder
from malora_jax.models.config import Llama3Scaling
from tests.helpers.models import (
    STRUCTURES,
    groups_of,
    hidden_states,
    packed_batch,
    random_variables,
    small_method,
    tiny_model,
)
from tests.helpers.reference_decoder import (
    ReferenceDecoder,
    ReferenceOutputs,
    choice_scores,
    routing_margin,
)

pytestmark = pytest.mark.usefixtures('compile_quickly')

# Three examples and, in the second row, padding.
BATCH = jax.tree.map(jnp.asarray, packed_batch([(4, 4), (6,)], 8))
ARRAYS = tuple(BATCH[key] for key in ('inputs', 'positions', 'segment_ids'))
REAL = np.asarray(BATCH['segment_ids']) > 0
FEATURES = dict(qkv_bias=True, qk_norm=True, rope_scaling=Llama3Scaling(4.0, 1.0, 4.0, 16))


def reference_outputs(model: Decoder, variables) -> tuple[ReferenceOutputs, float]:
    """Return the reference outputs, and the smallest margin of a routing decision."""
    reference = ReferenceDecoder(model.config, variables, model.adapter)
    outputs = reference(*map(np.asarray, ARRAYS))
    if model.adapter is None:
        return outputs, np.inf
    chances = choice_scores(outputs, np.asarray(BATCH['segment_ids']))
    return outputs, routing_margin(chances, model.adapter.router)


@functools.cache
def decided(name: str):
    """Return the method's model and random values for which rounding cannot change the routing."""
    model = tiny_model(small_method(name), **FEATURES)
    for seed in range(20):
        variables = random_variables(model, seed)
        if reference_outputs(model, variables)[1] > 1e-4:
            return model, variables
    raise AssertionError('every seed has a router in two minds')


@pytest.mark.parametrize('name', STRUCTURES)
def test_hidden_states_against_the_reference(name):
    model, variables = decided(name)
    expected = reference_outputs(model, variables)[0].hidden[REAL]
    hidden = np.asarray(hidden_states(model, variables, *ARRAYS))[REAL]
    assert expected.std() > 0.5
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=3e-5)
    base = ReferenceDecoder(model.config, variables)(*map(np.asarray, ARRAYS)).hidden[REAL]
    assert np.abs(expected - base).max() > 0.1, 'the adapter matters'


@st.composite
def adapters(draw) -> AdapterConfig:
    """Draw any small member of the adapter family."""
    num_experts, rank = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    top_k = draw(st.integers(1, num_experts))
    subspace = draw(st.sampled_from([None, *SUBSPACES]))
    if subspace == 'ranks':
        rank = 1
    shared_rank = {
        None: 0,
        'own': num_experts * draw(st.integers(1, 2)),
        'ranks': num_experts,
        **dict.fromkeys(('heads', 'tails', 'both', 'tasks', 'summed_heads'), rank),
    }.get(subspace, rank + draw(st.integers(0, 3)))
    is_routed = subspace not in ('tasks', 'summed_heads')
    if not is_routed:
        top_k = num_experts
    has_router = is_routed and num_experts > 1
    gates = ['plain'] + ['equal_gates'] * has_router + ['renormalize'] * (has_router and top_k > 1)
    chosen = draw(st.sampled_from(gates))
    return AdapterSettings(
        num_experts=num_experts,
        top_k=top_k,
        rank=rank,
        alpha=2.0 * rank,
        shared_rank=shared_rank,
        subspace=subspace or 'down',
        rank_stabilized=draw(st.booleans()),
        magnitude=num_experts == 1 and subspace is None and draw(st.booleans()),
        **({} if chosen == 'plain' else {chosen: True}),
        # With equal gates for all experts, the router would get no gradient.
        frozen=('router',) if chosen == 'equal_gates' and top_k == num_experts else (),
        tasks=('a', 'b') if subspace == 'tasks' else (),
        targets=tuple(draw(st.sets(st.sampled_from(LINEARS), min_size=1))),
    ).build()


@st.composite
def models(draw) -> Decoder:
    """Draw any small decoder with an adapter."""
    num_kv_heads = draw(st.integers(1, 2))
    return tiny_model(
        draw(adapters()),
        width=draw(st.integers(12, 20)),
        hidden=draw(st.integers(12, 20)),
        num_layers=draw(st.integers(1, 3)),
        num_kv_heads=num_kv_heads,
        num_heads=num_kv_heads * draw(st.integers(1, 3)),
        head_width=2 * draw(st.integers(5, 8)),
        tied=draw(st.booleans()),
        **{key: value for key, value in FEATURES.items() if draw(st.booleans())},
    )


@settings(deadline=None, max_examples=8)
@given(models(), st.integers(0, 100))
def test_hidden_states_of_any_shape_against_the_reference(model, seed):
    variables = random_variables(model, seed)
    outputs, how_decided = reference_outputs(model, variables)
    assume(how_decided > 1e-4)
    hidden = np.asarray(hidden_states(model, variables, *ARRAYS))
    np.testing.assert_allclose(hidden[REAL], outputs.hidden[REAL], rtol=0, atol=3e-4)


@pytest.mark.parametrize('name', STRUCTURES)
def test_jit_changes_nothing(name):
    model, variables = decided(name)
    compiled = np.asarray(hidden_states(model, variables, *ARRAYS))[REAL]
    with jax.disable_jit():
        groups_NG = groups_of(model, np.zeros(REAL.shape, int))
        plain = np.asarray(model.apply(variables, *ARRAYS, groups_NG)[0])[REAL]
    np.testing.assert_allclose(plain, compiled, rtol=0, atol=3e-5)


@pytest.mark.parametrize('name', STRUCTURES)
def test_bfloat16_is_close_to_float32(name):
    """The error is below 4% of the hidden states' size, ten times the precision of bfloat16."""
    model, variables = decided(name)
    small = tiny_model(model.adapter, **FEATURES, dtype='bfloat16')
    # Both use the same rounded numbers.
    shapes = random_variables(small)['params']
    params = jax.tree.map(lambda a, like: a.astype(like.dtype), variables['params'], shapes)
    rounded = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    expected = np.asarray(hidden_states(model, variables | {'params': rounded}, *ARRAYS))[REAL]
    hidden = hidden_states(small, variables | {'params': params}, *ARRAYS)
    assert hidden.dtype == jnp.bfloat16
    error = np.asarray(hidden, np.float32)[REAL] - expected
    assert (error**2).mean() ** 0.5 < 0.04 * (expected**2).mean() ** 0.5

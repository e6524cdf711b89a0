"""A bank of adapters: each row of a batch gets the update of its own adapter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.models import Decoder
from malora_jax.models.adapter_bank import bank_adapters
from malora_jax.models.decoder import output_head
from malora_jax.models.engine import Engine, GenerationRequest
from malora_jax.models.task_lora import task_lora
from tests.helpers.models import (
    METHOD_NAMES,
    logits_of,
    prompts,
    random_variables,
    small_method,
    tiny_model,
)

# Largest difference of float32 logits, relative to the largest logit.
TOLERANCE = 1e-5
TOKENS = jnp.asarray(prompts(*[9] * 9))
VARIANTS = {
    **{name: (name, {}) for name in METHOD_NAMES},
    'renormalized': ('malora', {'renormalize': True}),
    'equal': ('malora', {'equal_gates': True}),
    'router on the subspace': ('malora', {'router_input': 'first'}),
    'experts per layer': ('malora', {'experts_per_layer': (2, 4)}),
    'experts per layer, dense': ('hydralora', {'experts_per_layer': (4, 1)}),
    'second router, experts per layer': ('d2mora', {'experts_per_layer': (2, 4)}),
    'rank-stabilized': ('lora', {'rank_stabilized': True}),
    'balance bias': ('malora', {'bias_rate': 0.1}),
    'thresholds per layer': ('adamole', {'experts_per_layer': (2, 4)}),
    'bias in gates': ('smora', {'bias_in_gates': True}),
    'bias in softmax gates, experts per layer': (
        'malora',
        {'bias_rate': 0.1, 'bias_in_gates': True, 'experts_per_layer': (2, 4)},
    ),
    'no width scale': ('goat', {'width_scale': False}),
    'rank-stabilized heads': ('mlora_heads', {'rank_stabilized': True, 'targets': ('q', 'o')}),
}
# Adapters of different ranks, numbers of experts and targets.
MIXED = {
    'malora': ('malora', {}),
    'molora': (
        'molora',
        {'num_experts': 3, 'experts_per_layer': (3, 2), 'targets': ('q', 'o', 'down')},
    ),
    'lora': ('lora', {'targets': ('k', 'v', 'up')}),
    'dora': ('dora', {'targets': ('q', 'down')}),
    'adamole': ('adamole', {'targets': ('q', 'v')}),
    'flylora': ('flylora', {'targets': ('v', 'o', 'down')}),
    'd2mora': ('d2mora', {'num_experts': 3, 'top_k': 3, 'targets': ('q', 'v', 'down')}),
    'goat': ('goat', {'targets': ('k', 'down')}),
}

pytestmark = pytest.mark.usefixtures('compile_quickly')


def adapted(variant: tuple[str, dict], seed: int, **base) -> tuple[Decoder, dict]:
    name, changes = variant
    model = tiny_model(small_method(name, **changes), **base)
    return model, random_variables(model, seed=seed) | {'params': base_params(**base)}


def base_params(**base):
    return random_variables(tiny_model(**base))['params']


def banked_logits(models, adapters) -> np.ndarray:
    model, variables = bank_adapters(models)
    hidden_BTD = banked_states(model, variables, jnp.asarray(adapters))
    return np.asarray(hidden_BTD @ output_head(model.config, variables['params']).T)


@functools.partial(jax.jit, static_argnums=0)
def banked_states(model, variables, adapters_B) -> jax.Array:
    inputs = TOKENS, jnp.broadcast_to(jnp.arange(9)[None], TOKENS.shape), jnp.ones_like(TOKENS)
    adapter_BT = jnp.repeat(adapters_B[:, None], 9, axis=1)
    return model.apply(variables, *inputs, adapter_BT=adapter_BT)[0]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize('name', VARIANTS)
def test_one_adapter(name):
    model, variables = adapted(VARIANTS[name], seed=3)
    expected = logits_of(model, variables, TOKENS)
    base = logits_of(tiny_model(), {'params': variables['params']}, TOKENS)
    assert np.abs(expected - base).max() > 0.1
    adapters = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0])
    # An adapter with parameters for each task has a LoRA for each, here for the first.
    first = (*model.adapter.tasks, '')[0]
    found = banked_logits([task_lora(model, variables, first)], adapters)
    assert_close(found[adapters == 0], expected[adapters == 0])
    assert_close(found[2], base[2])


@pytest.mark.parametrize('base', [{}, {'quantize': 'int8'}, {'qkv_bias': True}])
def test_each_row_has_its_adapter(base):
    models = [adapted(each, seed, **base) for seed, each in enumerate(MIXED.values())]
    adapters = [2, 0, 8, 3, 1, 4, 7, 6, 5]
    found = banked_logits(models, adapters)
    everyone = [*models, (tiny_model(**base), {'params': models[0][1]['params']})]
    for row, index in enumerate(adapters):
        model, variables = everyone[index]
        assert_close(found[row], logits_of(model, variables, TOKENS[row : row + 1])[0])


def test_requests_for_different_adapters_are_answered_as_alone():
    models = [adapted(each, seed) for seed, each in enumerate(MIXED.values())]
    questions = prompts(5, 16, 3, 11, 4, 7, 6, 9, 2, 8)
    adapters = [0, 8, 3, 1, 2, 0, 4, 7, 6, 5]

    def answers(engine, requests) -> list[list[int]]:
        numbers = [engine.submit(request) for request in requests]
        found = {number: [] for number in numbers}
        while not engine.is_idle:
            for output in engine.step():
                found[output.request_id] += [token.id for token in output.tokens]
        return list(found.values())

    model, variables = bank_adapters(models)
    together = answers(
        Engine(model, variables, [999], 4),
        [
            GenerationRequest(prompt, 12, adapter=adapter)
            for prompt, adapter in zip(questions, adapters, strict=True)
        ],
    )
    everyone = [*models, (tiny_model(), {'params': base_params()})]
    alone = [
        answers(Engine(*everyone[adapter], [999], 1), [GenerationRequest(prompt, 12)])[0]
        for prompt, adapter in zip(questions, adapters, strict=True)
    ]
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 3

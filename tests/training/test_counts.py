"""Cost of a training step, independent of the machine's speed: operations and buffer sizes."""

import functools
import math

import flax.linen as nn
import jax
import pytest

from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import flops_per_token
from malora_jax.training.state import create_state
from malora_jax.training.step import abstract_batch, make_gradient_function, make_train_step
from tests.helpers.jaxprs import equations, product_flops
from tests.helpers.models import METHOD_NAMES, small_method
from tests.helpers.steps import ADAMW, make_hyperparameters

ROWS, LENGTH, TASKS, LAYERS = 4, 32, 2, 6
TOKENS = ROWS * LENGTH
RANK_SPACE = [name for name in METHOD_NAMES if not name.endswith('_dispatch')]


def abstract(name: str, remat: str = 'none', **changes):
    """Return a model and its step's abstract arguments: state, base, batch, hyperparameters."""
    adapter = small_method(name, dropout=0.0, **changes) if name else None
    # With this head width, no kernel has the shape of concatenated factors, whose columns are few
    # or multiples of 8.
    model = Decoder(preset('tiny', num_layers=LAYERS, head_width=22), adapter, remat)
    params = nn.unbox(abstract_variables(model))['params']
    optimizer = make_optimizer(ADAMW, 10)
    state = jax.eval_shape(lambda params: create_state(model, optimizer, 0, params), params)
    return model, (state, params, abstract_batch(ROWS, LENGTH), make_hyperparameters(adapter))


@functools.cache
def traced(name: str, remat: str = 'none', **changes):
    """Return every equation of a method's loss and gradient, and how often it runs."""
    model, shapes = abstract(name, remat, **changes)
    return list(equations(jax.make_jaxpr(make_gradient_function(model, TASKS))(*shapes).jaxpr))


def flops_of_linears(name: str, remat: str = 'none', **changes) -> int:
    """Return the FLOPs of all products of two matrices, except for the head."""
    vocabulary = preset('tiny').vocab_size
    return sum(
        times * product_flops(equation)
        for equation, times in traced(name, remat, **changes)
        if equation.primitive.name == 'dot_general'
        and all(len(var.aval.shape) == 2 for var in equation.invars)
        and vocabulary not in (*equation.invars[1].aval.shape, *equation.outvars[0].aval.shape)
    )


@pytest.mark.parametrize('remat', ['none', 'light'])
@pytest.mark.parametrize('name', RANK_SPACE)
def test_operations_are_those_of_the_plan(name, remat):
    """The plan ignores widening gates and routing sums, under 5% even in this model."""
    check_operations(name, remat)


@pytest.mark.parametrize('remat', ['none', 'light'])
def test_operations_with_masks_are_those_of_the_plan(remat):
    check_operations('mlora_heads', remat, head_dropout=0.2)


def test_operations_with_masks_of_cores_are_those_of_the_plan():
    """With `light`, the merged cores are computed again."""
    check_operations('comol', 'none', core_dropout=0.2)


def check_operations(name, remat, **changes):
    model, _ = abstract(name, **changes)
    planned = flops_per_token(model, LENGTH, ROWS)
    head = 2 * model.config.width * model.config.vocab_size
    head *= max(model.adapter.router.samples, 1)
    parts = ('base_forward', 'base_backward', 'adapter_forward', 'adapter_backward')
    expected = TOKENS * (sum(planned[part] for part in parts) - 2 * head)
    expected += TOKENS * planned['column_lengths']
    assert 0.97 < flops_of_linears(name, remat, **changes) / expected < 1.06


@pytest.mark.parametrize('name', METHOD_NAMES)
def test_no_product_is_a_gradient_of_the_base(name):
    model, (_, params, *_) = abstract(name)
    kernels = {leaf.shape[1:] for leaf in jax.tree.leaves(params['layers']) if len(leaf.shape) == 3}
    weights = kernels | {shape[::-1] for shape in kernels} | {params['embedding'].shape}
    assert (TOKENS, model.config.width) not in weights
    for equation, _ in traced(name):
        if equation.primitive.name == 'dot_general':
            assert equation.outvars[0].aval.shape not in weights, equation


@pytest.mark.parametrize('name', METHOD_NAMES)
def test_no_buffer_has_tokens_by_experts_by_features(name):
    """Dispatch buffers also have at most K slots per token and a tile per expert."""
    model, _ = abstract(name)
    adapter, config = model.adapter, model.config
    rows = TOKENS
    if adapter.dispatch:
        rows = TOKENS * adapter.router.top_k + (1 + adapter.num_experts) * 128
    most = max(
        rows * config.hidden, ROWS * config.num_heads * LENGTH**2, TOKENS * config.vocab_size
    )
    for equation, _ in traced(name):
        if equation.primitive.name in ('scan', 'while', 'pjit', 'jit'):
            continue  # Their results hold all layers, or the base model.
        for var in equation.outvars:
            shape = var.aval.shape
            if config.vocab_size in shape:
                continue  # Logits, one chunk at a time.
            of_tokens = TOKENS in shape or ROWS in shape[:1] or rows in shape
            assert not of_tokens or math.prod(shape) <= most, equation


@functools.cache
def temporary_bytes(name: str) -> int:
    model, shapes = abstract(name, 'light')
    schedule = learning_rate_schedule(ADAMW, 10)
    step = make_train_step(model, make_optimizer(ADAMW, 10), schedule, TASKS)
    return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('name, most', [('dora', 1.2), ('molora', 1.2), ('malora', 1.35)])
def test_memory_is_about_that_of_lora(name, most):
    """Gates and hidden activations are large compared with this model's 64 dimensions."""
    assert temporary_bytes(name) < most * temporary_bytes('lora')

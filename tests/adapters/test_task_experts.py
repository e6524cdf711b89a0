"""Experts that are weighted by the task, against the equation of MTL-LoRA in float64 numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters import LowRankExperts, method
from malora_jax.adapters.settings import replace_settings, with_tasks
from malora_jax.adapters.task_experts import TaskExperts
from malora_jax.errors import UserError

INPUTS, OUTPUTS, RANK, EXPERTS = 11, 7, 4, 3
TASKS, TEMPERATURE = ('a', 'b', 'c', 'd'), 0.3
# Task of each token: three of four tasks, and padding.
TASK_N = np.array([0, 2, 2, -1, 0, 1, 2, 1, -1])
CONFIG = method(
    'mtl_lora',
    num_experts=EXPERTS,
    rank=RANK,
    shared_rank=RANK,
    alpha=6.0,
    tasks=TASKS,
    task_temperature=TEMPERATURE,
)


def leaves_and_inputs():
    """Return random leaves, B included, inputs, and weights of the outputs in the objective."""
    rng = np.random.default_rng(0)
    shapes = {
        'shared_down': (INPUTS, RANK),
        'core': (len(TASKS), RANK, RANK),
        'up': (EXPERTS, RANK, OUTPUTS),
        'task_weights': (len(TASKS), EXPERTS),
    }
    leaves = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    N = len(TASK_N)
    return leaves, rng.normal(size=(N, INPUTS)), rng.normal(size=(N, OUTPUTS))


def update(leaves, x_ND, tasks_N=TASK_N, config=CONFIG):
    groups_NT = jax.nn.one_hot(tasks_N, len(TASKS), dtype=jnp.float32)
    leaves, x_ND = jax.tree.map(jnp.asarray, (leaves, x_ND))
    experts = LowRankExperts(config, OUTPUTS)
    return experts.apply({'adapter': leaves}, x_ND, None, groups_NT)


def by_hand(leaves, x_ND, weights_NF):
    """Return the updates, and the gradients of their weighted sum, token by token.

    With the paper's letters: y = s B Λ_t A x and B = Σ_i p_i B_i, p = softmax(w_t / τ).
    """
    A, s = leaves['shared_down'].T, 6.0 / RANK
    y = np.zeros((len(x_ND), OUTPUTS))
    gradients = {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
    gradient_x = np.zeros_like(x_ND)
    for n, (t, x, c) in enumerate(zip(TASK_N, x_ND, weights_NF, strict=True)):
        if t < 0:
            continue
        L = leaves['core'][t].T
        exponents = np.exp(leaves['task_weights'][t] / TEMPERATURE)
        p = exponents / exponents.sum()
        B_i = [each.T for each in leaves['up']]
        B = sum(p[i] * B_i[i] for i in range(EXPERTS))
        y[n] = s * B @ L @ A @ x
        for i in range(EXPERTS):
            gradients['up'][i] += s * p[i] * np.outer(L @ A @ x, c)
        gradients['core'][t] += s * np.outer(A @ x, B.T @ c)
        gradients['shared_down'] += s * np.outer(x, L.T @ B.T @ c)
        gradient_x[n] = s * A.T @ L.T @ B.T @ c
        values = np.array([s * c @ each @ L @ A @ x for each in B_i])
        gradients['task_weights'][t] += p * (values - p @ values) / TEMPERATURE
    return y, gradients, gradient_x


def test_updates_and_all_gradients_in_float64():
    leaves, x_ND, weights_NF = leaves_and_inputs()
    y_NF, gradients, gradient_x = by_hand(leaves, x_ND, weights_NF)
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (leaves, x_ND))
        found = update(*arguments)
        found_gradients, found_x = jax.grad(
            lambda leaves, x_ND: (update(leaves, x_ND) * weights_NF).sum(), (0, 1)
        )(*arguments)
        assert found.dtype == jnp.float64

    def close(found, expected):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())

    close(found, y_NF)
    close(found_x, gradient_x)
    for name, expected in gradients.items():
        close(found_gradients[name], expected)
    # The last task has no tokens, and padding has no update.
    for name in ('core', 'task_weights'):
        assert not np.any(found_gradients[name][3]) and np.all(found_gradients[name][:3])
    assert not np.any(np.asarray(found)[TASK_N < 0])


def test_a_token_sees_the_parameters_of_its_own_task_alone():
    leaves, x_ND, _ = leaves_and_inputs()
    before = update(leaves, x_ND)
    changed = {**leaves, 'core': leaves['core'].copy(), 'task_weights': leaves['task_weights'] + 0}
    changed['core'][1] += 1
    changed['task_weights'][1, 0] += 1
    differs_N = np.any(update(changed, x_ND) != before, axis=1)
    np.testing.assert_array_equal(differs_N, TASK_N == 1)


def test_projections_are_the_lora_of_each_task():
    """Float64 NumPy arrays keep their precision."""
    leaves, x_ND, weights_NF = leaves_and_inputs()
    expected = by_hand(leaves, x_ND, weights_NF)[0]
    down, up = CONFIG.structure.projections({name: leaf[None] for name, leaf in leaves.items()})
    assert down.shape == (1, 1, INPUTS, RANK) and up.shape == (1, len(TASKS), RANK, OUTPUTS)
    found = np.stack(
        [(t >= 0) * 1.5 * x @ down[0, 0] @ up[0, t] for t, x in zip(TASK_N, x_ND, strict=True)]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_tokens_without_tasks_are_refused():
    leaves, x_ND, _ = jax.tree.map(jnp.asarray, leaves_and_inputs())
    message = re.escape('has parameters for each task (a, b, c, d): choose one with --task=NAME')
    for groups in (None, jnp.ones((len(x_ND), 2))):
        with pytest.raises(UserError, match=message):
            LowRankExperts(CONFIG, OUTPUTS).apply({'adapter': leaves}, x_ND, None, groups)


def test_parameters_need_the_names_of_the_tasks():
    experts = LowRankExperts(method('mtl_lora'), OUTPUTS)
    with pytest.raises(UserError, match=r'tasks is \(\); it must be the names of the tasks in the'):
        experts.init(jax.random.key(0), jnp.ones((1, 40)))


def test_tasks_of_the_data_fill_an_adapter():
    filled = with_tasks(method('mtl_lora'), ['b', 'a'])
    assert filled.tasks == ('b', 'a')
    assert filled == method('mtl_lora', tasks=('b', 'a')) == with_tasks(filled, ('b', 'a'))
    assert with_tasks(method('malora'), ['b', 'a']) == method('malora')
    with pytest.raises(UserError, match=re.escape("tasks is ('b', 'a'); it must be (), or ('a', ")):
        with_tasks(filled, ('a', 'b'))
    with pytest.raises(UserError, match=re.escape("tasks is ('b', 'a'); it must be (), or ('b',)")):
        with_tasks(filled, ('b',))


def test_settings_survive_a_change_of_others():
    changed = replace_settings(CONFIG, dropout=0.5)
    assert isinstance(changed.structure, TaskExperts)
    assert (changed.tasks, changed.structure.temperature) == (TASKS, TEMPERATURE)
    assert not changed.has_router and changed.num_logits == 0

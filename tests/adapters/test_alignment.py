"""The alignment loss between the down-projected inputs of different tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters.alignment import alignment_loss, task_moments
from tests.helpers import reference

TASKS = np.repeat([0, 1, 2], [9, 30, 21])


def projected(seed: int = 0) -> np.ndarray:
    """Return activations whose mean is far from zero, compared with their spread."""
    rng = np.random.default_rng(seed)
    return 5 + rng.normal(size=(60, 4)) * (1 + TASKS[:, None])


def loss_of(z_NQ, tasks, num_tasks: int = 3, real=None) -> jax.Array:
    groups_NG = jax.nn.one_hot(tasks, num_tasks)
    if real is not None:
        groups_NG *= jnp.asarray(real, jnp.float32)[:, None]
    return alignment_loss(task_moments(jnp.asarray(z_NQ, jnp.float32), groups_NG))


def test_the_loss_is_the_symmetric_divergence_of_normal_distributions():
    z_NQ = projected()
    np.testing.assert_allclose(loss_of(z_NQ, TASKS), reference.alignment_loss(z_NQ, TASKS), 1e-5)


def test_the_divergence_is_that_of_samples():
    """KL(p‖q) is the mean of log p(x) - log q(x) over samples x of p."""
    rng = np.random.default_rng(0)
    p, q = ((rng.normal(size=3), rng.uniform(0.5, 2, 3)) for _ in range(2))
    samples = rng.normal(p[0], np.sqrt(p[1]), (400_000, 3))
    p_log, q_log = (
        -0.5 * (np.log(variance) + (samples - mean) ** 2 / variance).sum(axis=1)
        for mean, variance in (p, q)
    )
    assert np.mean(p_log - q_log) == pytest.approx(reference.normal_divergence(p, q), rel=0.02)


def test_tasks_of_a_batch_that_has_few_tokens_of_them_do_not_count():
    """Task 3 is absent, task 4 has a single token, and padding belongs to task 0."""
    z_NQ = np.concatenate([projected(), 9 * projected(1)[:11]])
    tasks, real = np.concatenate([TASKS, [4], np.zeros(10, int)]), np.arange(71) < 61
    with_others = jax.value_and_grad(lambda z_NQ: loss_of(z_NQ, tasks, 5, real))
    loss, gradient_NQ = with_others(jnp.asarray(z_NQ, jnp.float32))
    np.testing.assert_allclose(loss, loss_of(projected(), TASKS), rtol=1e-6)
    assert np.abs(gradient_NQ[:60]).min() > 0
    assert not np.any(gradient_NQ[60:])


def test_a_single_task_has_no_loss():
    z_NQ = jnp.asarray(projected(), jnp.float32)
    loss, gradient_NQ = jax.value_and_grad(loss_of)(z_NQ, 0 * TASKS)
    assert loss == 0
    assert not np.any(gradient_NQ)


def test_layers_are_independent():
    moments = [
        task_moments(jnp.asarray(projected(seed), jnp.float32), jax.nn.one_hot(TASKS, 3))
        for seed in (0, 1)
    ]
    both = jax.tree.map(lambda *each: jnp.stack(each), *moments)
    expected = [reference.alignment_loss(projected(seed), TASKS) for seed in (0, 1)]
    np.testing.assert_allclose(alignment_loss(both), expected, rtol=1e-5)

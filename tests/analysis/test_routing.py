"""Task information and entropy against manual values and scipy; top tokens of experts."""

import numpy as np
import pytest
from scipy import stats

from malora_jax.analysis.router_stats import RouterStats, idle_experts
from malora_jax.analysis.routing import (
    TokenShare,
    by_task,
    chance_information,
    entropy,
    expert_tokens,
    max_information,
    shares,
    task_information,
)


def test_entropy_is_in_bits():
    shares = np.array([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.25, 0.25, 0.0]])
    np.testing.assert_allclose(entropy(shares), [2.0, 0.0, 1.5])


@pytest.mark.parametrize(
    'load_GE, expected',
    [
        ([[4, 0], [0, 4]], 1.0),  # One expert per task.
        ([[400, 0], [0, 4]], 1.0),  # The number of tokens does not matter.
        ([[1, 3], [2, 6]], 0.0),  # Equal shares.
        # H(5/8, 3/8) - (H(1/4) + H(1/2)) / 2: the shares are (3/4, 1/4) and (1/2, 1/2).
        ([[3, 1], [1, 1]], 0.954434 - (0.811278 + 1.0) / 2),
        ([[2, 2, 0, 0], [0, 0, 2, 2]], 1.0),  # Two experts per task.
        ([[5, 5], [0, 0]], 0.0),  # A task without tokens.
    ],
)
def test_task_information_by_hand(load_GE, expected):
    found = task_information(np.array([load_GE]))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_task_information_is_the_sum_over_the_joint_distribution():
    """The result equals Σ p(g, e) log₂ p(g, e) / (p(g) p(e)), with equal weights for all tasks."""
    load_LGE = np.random.default_rng(0).integers(1, 50, (5, 3, 4)).astype(float)
    for found, load_GE in zip(task_information(load_LGE), load_LGE, strict=True):
        joint_GE = load_GE / load_GE.sum(axis=1, keepdims=True) / 3
        apart_GE = np.outer(joint_GE.sum(axis=1), joint_GE.sum(axis=0))
        assert found == pytest.approx(stats.entropy(joint_GE.ravel(), apart_GE.ravel(), base=2))


@pytest.mark.parametrize('tasks, experts, top_k, expected', [(4, 8, 2, 2.0), (2, 8, 2, 1.0)])
def test_the_most_information_is_that_of_tasks_with_experts_of_their_own(
    tasks, experts, top_k, expected
):
    load_GE = np.zeros((tasks, experts))
    for task in range(tasks):
        load_GE[task, top_k * task : top_k * (task + 1)] = 3.0
    assert max_information(tasks, experts, top_k) == expected
    assert task_information(load_GE[None]).item() == pytest.approx(expected)


def test_loads_of_questions_are_summed_by_task():
    load_QLE = np.arange(12.0).reshape(3, 2, 2)
    found = by_task(load_QLE, np.array([1, 0, 1]))
    np.testing.assert_array_equal(found[:, 0], load_QLE[1])
    np.testing.assert_array_equal(found[:, 1], load_QLE[0] + load_QLE[2])
    np.testing.assert_allclose(shares(found).sum(axis=-1), 1.0)
    np.testing.assert_array_equal(shares(np.zeros((1, 2))), [[0.0, 0.0]])


def test_chance_is_what_dealt_tasks_give():
    """Chance explains all if tasks route alike, and little if tasks have their own experts."""
    rng = np.random.default_rng(1)
    task_Q = np.repeat([0, 1], 30)
    alike_QLE = rng.multinomial(20, [0.25] * 4, size=(60, 1)).astype(float)
    chance = chance_information(alike_QLE, task_Q, num_permutations=200)
    found = task_information(by_task(alike_QLE, task_Q)).item()
    assert chance.shape == (200, 1)
    assert 0 < chance.mean() < 0.01 and found < np.quantile(chance, 0.999)
    # With one question per task, either assignment to tasks explains everything.
    apart = np.array([[[9.0, 0.0]], [[0.0, 9.0]]])
    np.testing.assert_allclose(chance_information(apart, np.array([0, 1])), 1.0)
    apart_QLE = np.repeat(apart, 30, axis=0)
    assert task_information(by_task(apart_QLE, task_Q)).item() == pytest.approx(1.0)
    assert chance_information(apart_QLE, task_Q).max() < 0.3


def test_the_tokens_of_each_expert():
    load_WE = np.array([[8.0, 0.0, 8.0], [10.0, 5.0, 5.0], [3.0, 4.0, 1.0]])
    count_W = np.array([8, 10, 4])
    first, second, third = expert_tokens(load_WE, count_W, 0.0, 2)
    # Ties go to the more frequent token.
    assert first == [TokenShare(1, 1.0), TokenShare(0, 1.0)]
    assert second == [TokenShare(2, 1.0), TokenShare(1, 0.5)]
    assert third == [TokenShare(0, 1.0), TokenShare(1, 0.5)]
    # A token whose share is not above the threshold is not listed.
    assert expert_tokens(load_WE, count_W, 0.5, 3)[1:] == [
        [TokenShare(2, 1.0)],
        [TokenShare(0, 1.0)],
    ]
    assert expert_tokens(load_WE[:1], count_W[:1], 0.0, 2)[1] == []


def test_experts_with_less_than_a_tenth_of_the_balanced_load_are_idle():
    """Two tasks use eight experts evenly in one layer, and mostly two of them in the other."""
    even, two = np.full(8, 0.125), np.array([0.47, 0.47, *[0.01] * 6])
    load_JLGE = np.stack([[even, even], [two, two[::-1]]])[None]
    router_stats = RouterStats(load_JLGE, *[np.zeros((1, 2))] * 5)
    np.testing.assert_array_equal(idle_experts(router_stats), [[0, 4]])

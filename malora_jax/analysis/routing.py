"""Statistics of routing: information about the task of a token, and typical tokens of an expert.

A token slot is one of the top_k routings of a token to an expert. `adapters.routers` computes other
statistics: loads, the load-balancing loss and the effective number of experts.

Dimension letters: L routers, G tasks, E experts, Q questions, W frequent tokens of the vocabulary.
"""

from typing import NamedTuple

import numpy as np


def entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of distributions along the last axis.

    Args:
        shares: (..., E) probabilities.

    Returns:
        (...) bits.
    """
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def task_information(load_LGE: np.ndarray) -> np.ndarray:
    """Return the mutual information of task and expert in bits, with all tasks weighted equally.

    It is the information that the expert of one token slot gives about the task of the token. It is
    0 if all tasks use the experts in the same way. Tasks without tokens are ignored.

    Args:
        load_LGE: (L, G, E) token slots, or fractions of them, by router, task and expert.

    Returns:
        (L,) H(expert) - H(expert | task), at least 0 and at most `max_information`.
    """
    load_LGE = np.asarray(load_LGE, np.float64)
    shares_LGE = shares(load_LGE[:, load_LGE.sum(axis=(0, 2)) > 0])
    conditional_L = entropy(shares_LGE).mean(axis=1)
    return np.maximum(entropy(shares_LGE.mean(axis=1)) - conditional_L, 0.0)


def max_information(num_tasks: int, num_experts: int, top_k: int) -> float:
    """Return the upper bound of `task_information` in bits.

    The number of tasks limits it to log2(num_tasks). The experts limit it to
    log2(num_experts / top_k), because the tokens of one task use at least top_k experts.
    """
    return float(np.log2(min(num_tasks, num_experts / top_k)))


def chance_information(
    load_QLE: np.ndarray, task_Q: np.ndarray, num_permutations: int = 20, seed: int = 0
) -> np.ndarray:
    """Return `task_information` with tasks assigned to questions at random, as a control.

    With few questions, tasks differ by chance alone. The tokens of one question are similar, so
    whole questions are permuted.

    Args:
        load_QLE: (Q, L, E) token slots by question, router and expert.
        task_Q: (Q,) task index of each question.
        num_permutations: Number of random permutations.
        seed: Random seed of the permutations.

    Returns:
        (num_permutations, L) bits.
    """
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            task_information(by_task(load_QLE, rng.permutation(task_Q)))
            for _ in range(num_permutations)
        ]
    )


def by_task(load_QLE: np.ndarray, task_Q: np.ndarray) -> np.ndarray:
    """Return the token slots of each task, summed over the task's questions, (L, G, E).

    Args:
        load_QLE: (Q, L, E) token slots by question, router and expert.
        task_Q: (Q,) task index of each question, from 0.
    """
    one_hot_GQ = np.arange(task_Q.max() + 1)[:, None] == task_Q[None]
    return np.einsum('GQ,QLE->LGE', one_hot_GQ.astype(np.float64), load_QLE)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return counts divided by their sum along the last axis; zero where the sum is zero."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


class TokenShare(NamedTuple):
    """A token of the vocabulary, and the fraction of its occurrences that an expert gets.

    Attributes:
        token_index: Index of the token in the array of frequent tokens.
        share: Fraction of its occurrences that are routed to the expert.
    """

    token_index: int
    share: float


def expert_tokens(
    load_WE: np.ndarray, count_W: np.ndarray, threshold: float, max_tokens: int
) -> list[list[TokenShare]]:
    """Return the tokens with the largest fraction of occurrences routed to each expert.

    Args:
        load_WE: (W, E) number of times that each token was routed to each expert of one router.
        count_W: (W,) number of occurrences of each token, at least 1.
        threshold: Fraction that a token must exceed, such as that of uniform routing.
        max_tokens: Maximum number of tokens for each expert.

    Returns:
        The tokens of each expert, by descending fraction; ties are broken by frequency.
    """
    share_WE = load_WE / count_W[:, None]
    orders = [np.lexsort((-count_W, -share_W)) for share_W in share_WE.T]
    return [
        [
            TokenShare(int(w), float(share_WE[w, expert]))
            for w in order[:max_tokens]
            if share_WE[w, expert] > threshold
        ]
        for expert, order in enumerate(orders)
    ]

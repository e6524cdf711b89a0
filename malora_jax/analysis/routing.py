"""Information in a router's choices: about the task of a token, and about the token itself.

Loads, balance and effective experts are those of `adapters.routers`.

Dimension letters: L routers, G tasks, E experts, Q questions, W words (tokens of the vocabulary).
"""

from typing import NamedTuple

import numpy as np


def entropy(shares: np.ndarray) -> np.ndarray:
    """Of distributions along the last axis, in bits."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def task_information(load_LGE: np.ndarray) -> np.ndarray:
    """Mutual information of task and expert, in bits, every task weighing the same.

    It is what the expert of one token slot tells of the slot's task: 0 where all tasks use the
    experts alike. Tasks without a token are left out.

    Args:
        load_LGE: token slots (or shares of them) by router, task and expert.

    Returns:
        (L,): H(expert) - H(expert | task), at least 0 and at most `most_information`.
    """
    load_LGE = np.asarray(load_LGE, np.float64)
    shares_LGE = shares(load_LGE[:, load_LGE.sum(axis=(0, 2)) > 0])
    given_L = entropy(shares_LGE).mean(axis=1)
    return np.maximum(entropy(shares_LGE.mean(axis=1)) - given_L, 0.0)


def most_information(num_tasks: int, num_experts: int, top_k: int) -> float:
    """The most that `task_information` can be: a task's slots go to K experts at least."""
    return float(np.log2(min(num_tasks, num_experts / top_k)))


def chance_information(
    load_QLE: np.ndarray, task_Q: np.ndarray, draws: int = 20, seed: int = 0
) -> np.ndarray:
    """`task_information` where tasks are dealt to the questions at random, a control.

    Few questions look different by chance alone, and the tokens of one question are alike: so
    whole questions are dealt.

    Args:
        load_QLE: token slots by question, router and expert.
        task_Q: the task of each question.
        draws: how many times tasks are dealt.
        seed: of the deals.

    Returns:
        (draws, L).
    """
    rng = np.random.default_rng(seed)
    return np.stack(
        [task_information(by_task(load_QLE, rng.permutation(task_Q))) for _ in range(draws)]
    )


def by_task(load_QLE: np.ndarray, task_Q: np.ndarray) -> np.ndarray:
    """(L, G, E): sums over the questions of each task."""
    one_hot_GQ = np.arange(task_Q.max() + 1)[:, None] == task_Q[None]
    return np.einsum('GQ,QLE->LGE', one_hot_GQ.astype(np.float64), load_QLE)


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts as shares of their sum along the last axis; zero where there are none."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


class Word(NamedTuple):
    """The number of a token, and the share of its occurrences that an expert got."""

    number: int
    share: float


def expert_words(
    load_WE: np.ndarray, count_W: np.ndarray, above: float, most: int
) -> list[list[Word]]:
    """The tokens that go to each expert most often when they occur.

    Args:
        load_WE: how often each token went to each expert, of one router.
        count_W: how often each occurred, at least once.
        above: the share that a token must exceed, such as that of even routing.
        most: how many tokens to name.

    Returns:
        For each expert, tokens with the highest share first; of equals the more frequent.
    """
    share_WE = load_WE / count_W[:, None]
    orders = [np.lexsort((-count_W, -share_W)) for share_W in share_WE.T]
    return [
        [
            Word(int(w), float(share_WE[w, expert]))
            for w in order[:most]
            if share_WE[w, expert] > above
        ]
        for expert, order in enumerate(orders)
    ]

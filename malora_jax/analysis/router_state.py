"""State of the routers at one step of a run, on its held-out questions.

Dimension letters: J linears, L layers, G tasks, E experts, Q questions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.adapters import AdapterConfig, routers
from malora_jax.adapters.routers import RoutingSums
from malora_jax.analysis import routing
from malora_jax.analysis.routed import Routed


class RouterState(NamedTuple):
    """Load, balance and task information of the routers.

    Attributes:
        load: (J, L, G, E), the share of each expert; they sum to one over E.
        balance, effective, largest: (J, L), the balance loss, how many experts are in use, and the
            share of the busiest.
        information: (J, L), bits that an expert tells of the task.
    """

    load: np.ndarray
    balance: np.ndarray
    effective: np.ndarray
    largest: np.ndarray
    information: np.ndarray

    def means(self) -> dict[str, float]:
        """Over all routers, by the names of metrics.jsonl."""
        return {
            'balance_loss': float(self.balance.mean()),
            'effective_experts': float(self.effective.mean()),
            'max_expert_share': float(self.largest.mean()),
            'task_information': float(self.information.mean()),
        }


def is_dense(adapter: AdapterConfig) -> bool:
    """True if all experts are chosen, so that only gates differ."""
    return adapter.router.top_k == adapter.num_experts


def choices(adapter: AdapterConfig, sums: RoutingSums) -> np.ndarray:
    """Token slots that went to each expert; where all are chosen, the sums of their gates."""
    return np.asarray(sums.gate if is_dense(adapter) else sums.load, np.float64)


def state_of(
    adapter: AdapterConfig, linears: Sequence[str], routed: Routed, task_Q: np.ndarray
) -> RouterState:
    """The state, from sums by question.

    Args:
        adapter: the settings.
        linears: J names.
        routed: what was summed.
        task_Q: the task of each question, from 0.
    """
    loads, rows = [], []
    for linear in linears:
        sums = routed.questions[linear]
        load_LGE = routing.by_task(choices(adapter, sums), task_Q)
        probability_LGE = routing.by_task(np.asarray(sums.probability, np.float64), task_Q)
        by_task = RoutingSums(load_LGE, probability_LGE, load_LGE)  # type: ignore[arg-type]
        share_LE = routers.expert_load(by_task)
        rows.append(
            (
                np.asarray(routers.balance_loss(by_task)),
                np.asarray(routers.effective_experts(share_LE)),
                np.asarray(share_LE.max(axis=-1)),
                routing.task_information(load_LGE),
            )
        )
        loads.append(routing.shares(load_LGE))
    return RouterState(np.stack(loads), *(np.stack(each) for each in zip(*rows, strict=True)))


def mean_chance(adapter: AdapterConfig, routed: Routed, task_Q: np.ndarray) -> float:
    """Task information if tasks were dealt to the questions at random; mean over routers."""
    each = [
        routing.chance_information(choices(adapter, sums), task_Q).mean()
        for sums in routed.questions.values()
    ]
    return float(np.mean(each))

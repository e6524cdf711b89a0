"""Router statistics at one step of a run, measured on its held-out questions.

Dimension letters: J linear modules, L layers, G tasks, E experts, Q questions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from malora_jax.adapters import AdapterConfig, load_balancing
from malora_jax.adapters.load_balancing import RoutingSums
from malora_jax.analysis import routing
from malora_jax.analysis.held_out_routing import HeldOutRouting

# An expert is idle if its load is less than this fraction of the balanced load.
_IDLE_FRACTION = 0.1


class RouterStats(NamedTuple):
    """Load, load balance and task information of the routers.

    Attributes:
        load: (J, L, G, E) fraction of token slots that each expert gets; sums to one over E. Each
            token has top_k slots, one for each expert that it is routed to. If all experts are
            active for every token, gates are used instead of slots.
        balance_loss: (J, L) load-balancing loss; 1 if experts are used evenly.
        effective_experts: (J, L) effective number of experts, exp(entropy) of their load.
        max_expert_share: (J, L) fraction of token slots of the busiest expert.
        task_information: (J, L) mutual information of task and expert, in bits.
        gate_sum: (J, L) sum of the gates of a token, averaged over the tokens.
    """

    load: np.ndarray
    balance_loss: np.ndarray
    effective_experts: np.ndarray
    max_expert_share: np.ndarray
    task_information: np.ndarray
    gate_sum: np.ndarray

    def means(self) -> dict[str, float]:
        """Return the mean over all routers of each statistic except `load`.

        Statistics that are in `metrics.jsonl` too have the same names there.
        """
        return {
            'balance_loss': float(self.balance_loss.mean()),
            'effective_experts': float(self.effective_experts.mean()),
            'max_expert_share': float(self.max_expert_share.mean()),
            'task_information': float(self.task_information.mean()),
            'gate_sum': float(self.gate_sum.mean()),
        }


def idle_experts(stats: RouterStats) -> np.ndarray:
    """Return the number of idle experts of each router, (J, L) integers.

    An expert is idle if its load, averaged over the tasks, is less than a tenth of the balanced
    load 1 / E.
    """
    load_JLE = stats.load.mean(axis=2)
    return (load_JLE < _IDLE_FRACTION / load_JLE.shape[-1]).sum(axis=-1)


def is_dense(adapter: AdapterConfig) -> bool:
    """Return whether all experts are active for every token."""
    return adapter.router.is_dense(adapter.num_experts)


def slot_counts(adapter: AdapterConfig, sums: RoutingSums) -> np.ndarray:
    """Return how many token slots each expert gets.

    If all experts are active for every token, these counts are all equal. The sum of the expert's
    gates is then returned instead.

    Args:
        adapter: Adapter configuration.
        sums: Routing sums; each of their arrays is (..., E).

    Returns:
        (..., E) float64.
    """
    return np.asarray(sums.gate if is_dense(adapter) else sums.load, np.float64)


def compute_router_stats(
    adapter: AdapterConfig, linears: Sequence[str], held_out: HeldOutRouting, task_Q: np.ndarray
) -> RouterStats:
    """Return the statistics of all routers.

    Args:
        adapter: Adapter configuration.
        linears: Names of the J linear modules.
        held_out: Routing sums by question.
        task_Q: (Q,) task index of each question, from 0.
    """
    loads, rows = [], []
    for linear in linears:
        sums = held_out.by_question[linear]
        load_LGE = routing.by_task(slot_counts(adapter, sums), task_Q)
        by_task = jax.tree.map(
            lambda each: routing.by_task(np.asarray(each, np.float64), task_Q), sums
        )._replace(load=load_LGE)
        share_LE = load_balancing.expert_load(by_task)
        rows.append(
            (
                np.asarray(
                    load_balancing.balance_loss(by_task, adapter.layer_experts(len(load_LGE)))
                ),
                np.asarray(load_balancing.effective_experts(share_LE)),
                np.asarray(share_LE.max(axis=-1)),
                routing.task_information(load_LGE),
                _gate_sums(adapter, sums),
            )
        )
        loads.append(routing.shares(load_LGE))
    return RouterStats(np.stack(loads), *(np.stack(each) for each in zip(*rows, strict=True)))


def _gate_sums(adapter: AdapterConfig, sums: RoutingSums) -> np.ndarray:
    """Return the sum of the gates of a token, averaged over the tokens, (L,) float64."""
    load_L, gate_L = (
        np.asarray(each, np.float64).sum(axis=(0, 2)) for each in (sums.load, sums.gate)
    )
    known = adapter.router.gate_sum(adapter.num_experts)
    if known is not None:
        return np.full_like(gate_L, known)
    # If the gates may have any sum, each token has top_k experts.
    return gate_L / load_L * adapter.router.top_k


def mean_chance_information(
    adapter: AdapterConfig, held_out: HeldOutRouting, task_Q: np.ndarray
) -> np.ndarray:
    """Return the task information that remains if tasks are assigned to questions at random.

    Args:
        adapter: Adapter configuration.
        held_out: Routing sums by question.
        task_Q: (Q,) task index of each question, from 0.

    Returns:
        (num_permutations,) bits, for each random assignment the mean over all routers.
    """
    # All linear modules have the same random assignments, because their seed is the same.
    each = [
        routing.chance_information(slot_counts(adapter, sums), task_Q)
        for sums in held_out.by_question.values()
    ]
    return np.mean(each, axis=(0, 2))

"""Start of routers from tasks: the tokens of task i choose expert i.

The logits of a router are those of linear discriminant analysis on the inputs of the linear layer,
down-projected by all experts. The classes are the tasks, and all of them have the same diagonal
covariance.

Dimension letters: L layers, E experts, G tasks, D inputs of a linear layer, R rank of an expert,
Q = E · R stacked ranks.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.alignment import TaskMoments
from malora_jax.adapters.routers import ROUTER, RouterConfig
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.distributed import sharding
from malora_jax.models import Decoder
from malora_jax.training.setup import Setup
from malora_jax.training.state import TrainState
from malora_jax.training.step import Batch

# Maximum number of training examples of each task.
_EXAMPLES = 32


def start_task_routers(state: TrainState, setup: Setup) -> TrainState:
    """Return a state whose routers send the tokens of each task to its expert.

    Args:
        state: State before the first step, whose experts are trained LoRAs.
        setup: Config, models and data of the run; expert i belongs to the i-th task that is
            trained on.
    """
    tasks, names = setup.run.data.trained_tasks, [split.task_name for split in setup.splits]
    columns = [names.index(task) for task in tasks]
    leaves, routers = state.leaves(), {}
    down, _ = IndependentExperts.factors
    for linear, moments in _task_moments(state, setup).items():
        weights_LQG = discriminants(jax.tree.map(lambda each: each[:, columns], moments))
        down_LEDR, fresh = leaves[f'{linear}/{down}'], leaves[f'{linear}/{ROUTER}']
        weights_LERG = weights_LQG.reshape(*down_LEDR.shape[:2], -1, len(tasks))
        product = functools.partial(jnp.einsum, 'LEDR,LERG->LDG', precision='highest')
        multiply = jax.jit(product, out_shardings=fresh.sharding)
        routers[f'{linear}/{ROUTER}'] = multiply(down_LEDR, np.float32(weights_LERG))
    return state.replace_leaves(routers)


def discriminants(moments: TaskMoments) -> np.ndarray:
    """Return the weights of linear discriminant analysis, without an offset.

    With the means m_g of the tasks, their mean m, and the diagonal covariance V of the distances
    from the means, the weight of task g is V⁻¹ (m_g - m - c m). A router has no offset, so c is
    such that the logits of m are zero.

    Args:
        moments: Moments of the inputs of each task, (L, G) and (L, G, Q).

    Returns:
        (L, Q, G) float64.
    """
    tokens_LG, mean_LGQ, variance_LGQ = (np.asarray(each, np.float64) for each in moments)
    share_LG1 = (tokens_LG / tokens_LG.sum(axis=1, keepdims=True))[..., None]
    variance_LQ1 = (share_LG1 * variance_LGQ).sum(axis=1)[..., None]
    # A rank whose activations are constant says nothing about the task.
    precision_LQ1 = np.divide(
        1, variance_LQ1, out=np.zeros_like(variance_LQ1), where=variance_LQ1 > 0
    )
    center_LQ1 = mean_LGQ.mean(axis=1)[..., None]
    offset_LQG = mean_LGQ.swapaxes(1, 2) - center_LQ1
    weighted_L1Q = (precision_LQ1 * center_LQ1).swapaxes(1, 2)
    length_L11 = weighted_L1Q @ center_LQ1
    excess_L1G = np.divide(
        weighted_L1Q @ offset_LQG,
        length_L11,
        out=np.zeros_like(offset_LQG[:, :1]),
        where=length_L11 > 0,
    )
    return precision_LQ1 * (offset_LQG - center_LQ1 * excess_L1G)


def add_moments(one: TaskMoments, other: TaskMoments) -> TaskMoments:
    """Return the moments of the tokens of two batches together.

    Args:
        one: Moments of the first batch, as NumPy arrays.
        other: Moments of the second batch.
    """
    tokens_LG = one.tokens + other.tokens
    share_LG1 = (other.tokens / np.maximum(tokens_LG, 1))[..., None]
    distance_LGQ = other.mean - one.mean
    variance_LGQ = (1 - share_LG1) * one.variance + share_LG1 * other.variance
    return TaskMoments(
        tokens_LG,
        one.mean + share_LG1 * distance_LGQ,
        variance_LGQ + share_LG1 * (1 - share_LG1) * distance_LGQ**2,
    )


def _task_moments(state: TrainState, setup: Setup) -> dict[str, TaskMoments]:
    """Return the moments of the down-projected inputs of each task, by path of the linear layer.

    The inputs are those in a model with the average of all experts.
    """
    adapter = setup.run.adapter
    average = dataclasses.replace(
        adapter, router=RouterConfig(adapter.num_experts), dispatch=False, alignment_weight=1.0
    )
    model = setup.model.clone(adapter=average)
    zeros = {path: 0 * leaf for path, leaf in state.leaves().items() if path.endswith(f'/{ROUTER}')}
    variables = state.replace_leaves(zeros).variables(setup.base.params)
    total: dict[str, TaskMoments] = {}
    for batch in setup.training_batches(setup.run.data.trained_tasks, _EXAMPLES):
        recorded = _record_moments(model, variables, batch, len(setup.splits))
        leaves = jax.tree_util.tree_leaves_with_path(
            recorded, is_leaf=lambda node: isinstance(node, TaskMoments)
        )
        for path, moments in leaves:
            linear = '/'.join(key.key for key in path[:-1])
            part = jax.tree.map(lambda each: np.asarray(each, np.float64), moments)
            total[linear] = add_moments(total[linear], part) if linear in total else part
    return total


@functools.partial(jax.jit, static_argnames=('model', 'num_tasks'))
def _record_moments(model: Decoder, variables: Any, batch: Batch, num_tasks: int) -> Any:
    segments_BT = batch['segment_ids']
    groups_BTG = jax.nn.one_hot(batch['task_ids'], num_tasks) * (segments_BT > 0)[..., None]
    _, recorded = model.apply(
        variables,
        batch['inputs'],
        batch['positions'],
        segments_BT,
        groups_BTG.reshape(-1, num_tasks),
        mutable=['alignment'],
    )
    return sharding.replicate(recorded['alignment'])

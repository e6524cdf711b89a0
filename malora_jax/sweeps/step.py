"""The training step of several runs at once: stacked adapters over one copy of the frozen base.

Dimension letters: Q runs (replicas).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.models import Decoder
from malora_jax.sweeps.traced import with_values
from malora_jax.training.config import RunConfig
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.state import TrainState, create_state
from malora_jax.training.step import Batch, abstract_batch, step_function

Values = Mapping[str, Any]


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one shape as one, with a new first axis Q."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: int | np.ndarray) -> Any:
    """One of what `stack` put together, or several."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def make_starts(run: RunConfig, steps: int) -> Callable[[Values, Any], TrainState]:
    """Fresh states, compiled once: of the values of a run and the base's parameters."""

    def start(values: Values, params: Any) -> TrainState:
        traced = with_values(run, values)
        model = Decoder(run.model, traced.adapter, run.training.remat)
        return create_state(model, make_optimizer(run.optimizer, steps), traced.seed, params)

    return jax.jit(start)


def lowered_step(
    run: RunConfig, steps: int, num_tasks: int, states: TrainState, params: Any, values: Values
) -> jax.stages.Lowered:
    """The step (states, params, batches, values) to (states, metrics), ready to be compiled.

    Args:
        run: the config of one, for all that they share.
        steps: of the whole run.
        num_tasks: G.
        states: of all, stacked; reused by the step.
        params: of the base; there is one.
        values: what they differ in, (Q,) each.
    """

    def one(state: TrainState, params: Any, batch: Batch, values: Values):
        traced = with_values(run, values)
        step = step_function(
            Decoder(run.model, traced.adapter, run.training.remat),
            make_optimizer(traced.optimizer, steps),
            learning_rate_schedule(traced.optimizer, steps),
            num_tasks,
            traced.seed,
            run.training.accumulate,
            run.training.skip_nonfinite > 0,
        )
        return step(state, params, batch)

    replicas = len(values['seed'])
    rows = run.data.batch_size * run.training.accumulate
    batches = {
        name: jax.ShapeDtypeStruct((replicas, *shape.shape), shape.dtype)
        for name, shape in abstract_batch(rows, run.data.sequence_length).items()
    }
    step = jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0)), donate_argnums=0)
    return step.lower(states, params, batches, values)

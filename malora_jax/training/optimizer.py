"""AdamW with warm-up and decay, over the adapter's tree and nothing else."""

import functools
from typing import Any

import jax
import optax

from malora_jax.adapters.structures import KINDS
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.hyperparameters import Hyperparameters


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate by step, as a share of its peak.

    It rises linearly to the peak and then decays to zero. The first step already has
    1 / warm-up steps of the peak, so that every step has an effect. The peak itself is a
    hyperparameter, and `config.learning_rate` is not read.

    Args:
        config: Optimizer configuration: schedule and warm-up ratio.
        steps: Number of optimizer steps of the whole run.
    """
    warmup = round(config.warmup_ratio * steps)
    rest = max(steps - warmup, 1)
    if config.schedule == 'cosine':
        decay = optax.cosine_decay_schedule(1.0, rest)
    else:
        decay = optax.linear_schedule(1.0, 0.0, rest)
    if warmup == 0:
        return decay
    rise = optax.linear_schedule(1.0 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


@functools.cache
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer, whose `update` takes its numbers as the argument `hyperparameters`.

    It clips the global norm, applies AdamW (β 0.9 and 0.999) and multiplies each update by the rate
    of its kind of leaf. The updates are multiplied, not the gradients, so that clipping and moments
    are the same for all rates.

    Args:
        config: Optimizer configuration. Its numbers are used where `update` gets no
            hyperparameters; the state does not depend on them.
        steps: Number of optimizer steps of the whole run.

    Raises:
        ValueError: A leaf's name has no rate; raised by `init`.
    """
    schedule = learning_rate_schedule(config, steps)

    def init(params: Any) -> optax.OptState:
        return _adamw(config, schedule).init(params)

    def update(
        updates: Any,
        state: optax.OptState,
        params: Any = None,
        *,
        hyperparameters: Hyperparameters | None = None,
        **_: Any,
    ) -> tuple[Any, optax.OptState]:
        numbers = config if hyperparameters is None else hyperparameters
        return _adamw(numbers, schedule).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _adamw(
    numbers: OptimizerConfig | Hyperparameters, schedule: optax.Schedule
) -> optax.GradientTransformation:
    rates = {name: getattr(numbers, f'{kind}_rate') for name, (kind, _) in KINDS.items()}
    return optax.chain(
        optax.clip_by_global_norm(numbers.clip_norm),
        optax.adamw(
            lambda step: numbers.learning_rate * schedule(step), weight_decay=numbers.weight_decay
        ),
        optax.partition({name: optax.scale(rate) for name, rate in rates.items()}, _leaf_names),
    )


def at_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Return the state with the learning rate that follows the given number of steps.

    Adam's own count, of the gradients that its moments have seen, stays as it is.
    """

    def counts_steps(path: Any, _: Any) -> bool:
        return getattr(path[-1], 'tuple_name', '') == optax.ScaleByScheduleState.__name__

    return optax.tree.set(opt_state, counts_steps, count=step)


def _leaf_names(tree: Any) -> Any:
    """The tree with each leaf's own name in its place."""

    def name(path: Any, _: Any) -> str:
        # A boxed leaf, whose axes have names, is one step further down.
        return next(key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey))

    return jax.tree_util.tree_map_with_path(name, tree)

"""AdamW with warm-up and decay, over the adapter's tree and nothing else."""

from typing import Any

import jax
import optax

from malora_jax.adapters.structures import KINDS
from malora_jax.training.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then decay that ends at zero.

    The first step already has 1 / warm-up steps of the peak, so that none is without effect.
    """
    warmup = round(config.warmup_ratio * steps)
    peak, rest = config.learning_rate, max(steps - warmup, 1)
    if config.schedule == 'cosine':
        decay = optax.cosine_decay_schedule(peak, rest)
    else:
        decay = optax.linear_schedule(peak, 0.0, rest)
    if warmup == 0:
        return decay
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping of the global norm, AdamW (β 0.9 and 0.999), then the rate of each kind of leaf.

    The updates are multiplied, not the gradients: clipping and moments are the same for all rates.

    Raises:
        ValueError: by `init`, if a leaf's name has no rate.
    """
    rates = {name: getattr(config, f'{kind}_rate') for name, (kind, _) in KINDS.items()}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config, steps), weight_decay=config.weight_decay),
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

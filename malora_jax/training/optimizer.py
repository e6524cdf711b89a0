"""AdamW with learning rate warm-up and decay, for the trainable leaves of the adapter only."""

import functools
from typing import Any

import jax
import optax

from malora_jax.adapters.base_structure import PARAMETER_KINDS, PARTITION_LABELS
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.hyperparameters import Hyperparameters


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate schedule, as a fraction of the peak learning rate.

    The rate rises linearly to the peak during warm-up, then decays to zero. With W warm-up steps
    the first step has 1 / W of the peak, so that every step has an effect. The peak itself is a
    hyperparameter of the training step; `config.learning_rate` is not used.

    Args:
        config: Optimizer configuration, of which `schedule` and `warmup_ratio` are used.
        steps: Number of optimizer steps of the whole run.

    Returns:
        A function from the step number to the fraction, in [0, 1].
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
    """Return the optimizer: gradient clipping, AdamW, and learning rate multipliers per leaf.

    It clips the gradient by its global norm, applies AdamW (β₁ 0.9, β₂ 0.999) and multiplies each
    update by the rate for its kind of leaf. It multiplies the updates, not the gradients, so that
    clipping and moments do not depend on these rates. `update` takes the numeric settings as its
    keyword argument `hyperparameters`.

    Args:
        config: Optimizer configuration. Its learning rates, weight decay and clip norm are used
            only if `update` gets no hyperparameters. The optimizer state does not depend on these
            numbers.
        steps: Number of optimizer steps of the whole run.

    Raises:
        ValueError: A leaf has a name that no rate applies to; raised by the optimizer's `init`.
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
        settings = config if hyperparameters is None else hyperparameters
        return _adamw(settings, schedule).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _adamw(
    settings: OptimizerConfig | Hyperparameters, schedule: optax.Schedule
) -> optax.GradientTransformation:
    rates = {
        label: getattr(settings, f'{PARAMETER_KINDS[label][0]}_rate') for label in PARTITION_LABELS
    }
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            lambda step: settings.learning_rate * schedule(step), weight_decay=settings.weight_decay
        ),
        optax.partition({label: optax.scale(rate) for label, rate in rates.items()}, _labels),
    )


def with_schedule_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Return an optimizer state whose learning rate schedule is at the given step.

    A skipped step advances the schedule, although its gradient is not added to Adam's moments. The
    count that Adam uses for bias correction is the number of gradients in the moments. Therefore
    this function does not change it.

    Args:
        opt_state: State of an optimizer from `make_optimizer`.
        step: () int32, number of steps that the run has made.
    """

    def counts_steps(path: Any, _: Any) -> bool:
        return getattr(path[-1], 'tuple_name', '') == optax.ScaleByScheduleState.__name__

    return optax.tree.set(opt_state, counts_steps, count=step)


def _labels(tree: Any) -> Any:
    """Return a tree of the same structure, with a label of each leaf, such as 'up', in its place.

    The optimizer finds the learning rate multiplier of a leaf by this label: its name, or its kind
    if the name is not a label.
    """

    def label(path: Any, _: Any) -> str:
        # The path of a boxed leaf, whose axes have names, ends with a key that is not its name.
        name = next(key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey))
        is_other_name = name not in PARTITION_LABELS and name in PARAMETER_KINDS
        return PARAMETER_KINDS[name][0] if is_other_name else name

    return jax.tree_util.tree_map_with_path(label, tree)

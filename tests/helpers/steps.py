"""Helpers for the tests of the training step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from malora_jax.adapters import AdapterConfig, trees
from malora_jax.training.config import OptimizerConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.state import TrainState

ADAMW = OptimizerConfig(
    learning_rate=1e-3, warmup_ratio=0.1, schedule='cosine', weight_decay=0.01, clip_norm=1.0
)


def make_hyperparameters(
    adapter: AdapterConfig | None, optimizer: OptimizerConfig = ADAMW, seed: int = 0
) -> Hyperparameters:
    """Return the hyperparameters of a training step with this adapter."""
    return Hyperparameters.from_configs(seed, optimizer, adapter)


def record_gradients(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wrap an optimizer so that its state is a pair: the last gradients and the inner state."""

    inner = optax.with_extra_args_support(optimizer)

    def update(gradients, state, params, **more):
        updates, own = inner.update(gradients, state[1], params, **more)
        return updates, (gradients, own)

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, update)


# Records the gradients that it receives, and changes no parameters.
RECORDER = record_gradients(optax.set_to_zero())


def new_state(variables: Any, optimizer: optax.GradientTransformation, step: int = 0) -> TrainState:
    """Return a state from copies of the variables, because a training step donates its buffers."""
    # By way of NumPy: JAX would compile a program that copies, one for each shape.
    adapter, frozen = jax.tree.map(
        lambda leaf: jnp.array(np.asarray(leaf)),
        (variables['adapter'], variables.get('adapter_frozen', {})),
    )
    return TrainState(jnp.int32(step), adapter, frozen, optimizer.init(adapter))


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Check that trees are equal up to `tolerance` times each leaf's largest entry.

    No leaf may be all zeros.
    """
    for (name, a), (_, b) in zip(
        trees.named_leaves(actual), trees.named_leaves(expected), strict=True
    ):
        scale = np.abs(b).max()
        assert scale > 0, name
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)

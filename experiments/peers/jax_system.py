"""Our system in a comparison with a peer: the training step of our runs, its loss and gradients."""

from typing import Any

import jax
import numpy as np

from experiments.peers.batches import PeerBatch
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.setup import Setup
from malora_jax.training.state import create_state
from malora_jax.training.step import losses, make_train_step

# Leaves (arrays) of our adapter by path in its tree, such as layers/attention/q/up; the first axis
# is the layer.
Leaves = dict[str, np.ndarray]

# Standard deviation of the random values in the last factor (the up-projection), which would
# otherwise start at zero, so that half of the gradients would be zero.
_LAST_FACTOR_STD = 0.02


class JaxSystem:
    """One of our methods, in JAX.

    Attributes:
        leaves: Weights of the adapter before the first step, by path. None are zero, not even the
            up-projections, because otherwise some gradients would be zero.
    """

    def __init__(self, setup: Setup, adapter: AdapterConfig):
        """Create the adapter on the base model of `setup`; the first step compiles.

        Args:
            setup: Parts of the run: base model, data and optimizer.
            adapter: Adapter configuration.
        """
        run = setup.run
        self._params, self._num_tasks = setup.base.params, len(setup.splits)
        self._model = Decoder(run.model, adapter, run.training.remat, run.attention)
        optimizer = make_optimizer(run.optimizer, setup.steps)
        state = create_state(self._model, optimizer, run.seed, self._params)
        last = adapter.structure.factors[-1]
        self._state = state.replace(adapter=_randomize_leaves(state.adapter, last, run.seed))
        self.leaves = _as_numpy(self._state.adapter)
        schedule = learning_rate_schedule(run.optimizer, setup.steps)
        self._step = make_train_step(self._model, optimizer, schedule, self._num_tasks)
        self._hyperparameters = jax.device_put(
            Hyperparameters.from_configs(run.seed, run.optimizer, adapter)
        )

    def step(self, batch: PeerBatch) -> None:
        """Run one training step, and wait until it ends."""
        self._state, metrics = self._step(
            self._state, self._params, batch.packed, self._hyperparameters
        )
        jax.block_until_ready((self._state, metrics))

    def gradients(self, batch: PeerBatch) -> tuple[float, Leaves]:
        """Return the mean cross-entropy in nats and its gradient, without dropout or balance loss.

        The balance loss is the load-balancing loss of the routers.
        """

        @jax.jit
        @jax.value_and_grad
        def loss(adapter: Any, params: Any, batch: Any) -> jax.Array:
            variables = self._state.replace(adapter=adapter).variables(params)
            sums = losses(self._model, variables, batch, self._num_tasks)
            return sums.nll.sum() / sums.loss_tokens.sum()

        value, gradients = loss(self._state.adapter, self._params, batch.packed)
        return float(value), _as_numpy(gradients)


def _randomize_leaves(adapter: Any, leaf_name: str, seed: int) -> Any:
    """Return the adapter with random numbers in the leaves named `leaf_name`."""
    key = jax.random.key(seed)

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key != leaf_name:
            return leaf
        return _LAST_FACTOR_STD * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, adapter)


def _as_numpy(tree: Any) -> Leaves:
    """Return copies of all leaves; the training step reuses the memory of the originals."""
    return {path: np.array(leaf) for path, leaf in named_leaves(tree)}

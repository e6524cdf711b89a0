"""Our side: the step that every run takes, and loss and gradients for the comparison."""

from typing import Any

import jax
import numpy as np

from experiments.peers.rows import Rows
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.setup import Setup
from malora_jax.training.state import create_state
from malora_jax.training.step import losses, make_train_step

# By path in the adapter's tree, such as layers/attention/q/up; the layers come first.
Leaves = dict[str, np.ndarray]

# Standard deviation of what is put into the last factor, which starts at zero.
_SPREAD = 0.02


class Ours:
    """One method in JAX.

    Attributes:
        leaves: the adapter's weights before the first step, none of them zero.
    """

    def __init__(self, setup: Setup, adapter: AdapterConfig):
        """Makes the adapter on the base of `setup`; compilation comes with the first step."""
        run = setup.run
        self._params, self._num_tasks = setup.base.params, len(setup.splits)
        self._model = Decoder(run.model, adapter, run.training.remat)
        optimizer = make_optimizer(run.optimizer, setup.steps)
        state = create_state(self._model, optimizer, run.seed, self._params)
        last = adapter.structure.factors[-1]
        self._state = state.replace(adapter=_filled(state.adapter, last, run.seed))
        self.leaves = _as_numpy(self._state.adapter)
        schedule = learning_rate_schedule(run.optimizer, setup.steps)
        self._step = make_train_step(self._model, optimizer, schedule, self._num_tasks)
        self._hyperparameters = jax.device_put(Hyperparameters.of(run.seed, run.optimizer, adapter))

    def step(self, rows: Rows) -> None:
        """One training step, to its end."""
        self._state, metrics = self._step(
            self._state, self._params, rows.packed, self._hyperparameters
        )
        jax.block_until_ready((self._state, metrics))

    def gradients(self, rows: Rows) -> tuple[float, Leaves]:
        """Mean cross-entropy and its gradient, without dropout and balance loss."""

        @jax.jit
        @jax.value_and_grad
        def loss(adapter: Any, params: Any, batch: Any) -> jax.Array:
            variables = self._state.replace(adapter=adapter).variables(params)
            sums = losses(self._model, variables, batch, self._num_tasks)
            return sums.nll.sum() / sums.loss_tokens.sum()

        value, gradients = loss(self._state.adapter, self._params, rows.packed)
        return float(value), _as_numpy(gradients)


def _filled(adapter: Any, last: str, seed: int) -> Any:
    """The adapter with random numbers in the leaves named `last`."""
    key = jax.random.key(seed)

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key != last:
            return leaf
        return _SPREAD * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, adapter)


def _as_numpy(tree: Any) -> Leaves:
    """Copies: the step reuses the memory of the state."""
    return {path: np.array(leaf) for path, leaf in named_leaves(tree)}

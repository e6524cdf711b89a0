"""The training state: step, adapter and optimizer state, without the frozen base model."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import unflatten_dict

from malora_jax.adapters.trees import ADAPTER_COLLECTIONS, named_leaves
from malora_jax.distributed import sharding
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables


class TrainState(struct.PyTreeNode):
    """Training state of a run, without the frozen base model.

    Attributes:
        step: () int32, number of optimizer steps made.
        adapter: Trainable leaves of the adapter, float32.
        adapter_frozen: Leaves of the adapter that the optimizer does not train: frozen ones, and
            biases that balance the load of experts.
        opt_state: State of the optimizer, which updates only `adapter`.
    """

    step: jax.Array
    adapter: Any
    adapter_frozen: Any
    opt_state: optax.OptState

    def variables(self, params: Any) -> dict[str, Any]:
        """Return the variable collections for `Decoder.apply`.

        Args:
            params: Parameters of the base model.
        """
        return {
            'params': params,
            'adapter': self.adapter,
            'adapter_frozen': self.adapter_frozen,
        }

    def leaves(self) -> dict[str, jax.Array]:
        """Return all leaves of the adapter by path, such as 'layers/attention/q/up'."""
        return {
            path: leaf
            for name in ADAPTER_COLLECTIONS
            for path, leaf in named_leaves(getattr(self, name))
        }

    def replace_leaves(self, leaves: Mapping[str, Any]) -> 'TrainState':
        """Return a state with other values of some leaves of the adapter.

        Args:
            leaves: New values by path, as in `leaves`.
        """
        trees = {name: dict(named_leaves(getattr(self, name))) for name in ADAPTER_COLLECTIONS}
        return self.replace(
            **{
                name: unflatten_dict({path: leaves.get(path, tree[path]) for path in tree}, sep='/')
                for name, tree in trees.items()
            }
        )


def create_state(
    model: Decoder, optimizer: optax.GradientTransformation, seed: int | jax.Array, params: Any
) -> TrainState:
    """Return a freshly initialized training state.

    If a mesh is set, the leaves and their optimizer moments are sharded over it.

    Args:
        model: Decoder with the adapter.
        optimizer: Optimizer of the adapter.
        seed: Random seed of the initialization.
        params: Parameters of the base model, from which DoRA's magnitudes are initialized.
    """
    key = jax.random.key(seed)
    create = functools.partial(_create, model, optimizer)
    where = sharding.result_shardings(create, key, params)
    return jax.jit(lambda *args: nn.unbox(create(*args)), out_shardings=where)(key, params)


def abstract_state(
    model: Decoder, optimizer: optax.GradientTransformation, params: Any
) -> TrainState:
    """Return the shapes and dtypes of `create_state`, with shardings if a mesh is set.

    Args:
        model: Decoder with the adapter.
        optimizer: Optimizer of the adapter.
        params: Parameters of the base model, as arrays or shapes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    return sharding.sharded_shapes(
        jax.eval_shape(functools.partial(_create, model, optimizer), key, params)
    )


def initial_variables(model: Decoder, seed: int) -> dict[str, Any]:
    """Return the initial adapter collections of `create_state`, without a base model.

    DoRA's magnitudes are not the same, because here they are computed from a base model of zeros.

    Args:
        model: Decoder with the adapter.
        seed: Random seed of the initialization.
    """
    shapes = nn.unbox(abstract_variables(model))['params']

    def create(key: jax.Array) -> Any:
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return nn.unbox(_init_adapter(model, key, params))

    return jax.jit(create)(jax.random.key(seed))


def _create(
    model: Decoder, optimizer: optax.GradientTransformation, key: jax.Array, params: Any
) -> TrainState:
    """Return a state whose leaves and optimizer moments are boxed with the names of their axes."""
    variables = _init_adapter(model, key, params)
    adapter = variables.get('adapter', {})
    return TrainState(
        step=jnp.int32(0),
        adapter=adapter,
        adapter_frozen=variables.get('adapter_frozen', {}),
        opt_state=optimizer.init(adapter),
    )


def _init_adapter(model: Decoder, key: jax.Array, params: Any) -> Any:
    """Return the adapter's collections before the first step, boxed with the names of axes."""
    one = jnp.ones((1, 1), jnp.int32)
    made = ['adapter', 'adapter_frozen']
    _, variables = model.apply(
        {'params': params}, one, one, one, rngs={'params': key}, mutable=made
    )
    return variables

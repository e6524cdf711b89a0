"""What a run trains and carries from step to step."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from malora_jax.distributed import rules
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables


class TrainState(struct.PyTreeNode):
    """The state of a run, without the frozen base.

    Attributes:
        step: () int32, optimizer steps made.
        adapter: the trained leaves, float32.
        adapter_frozen: the adapter's leaves that do not train.
        opt_state: of the optimizer, over `adapter` alone.
    """

    step: jax.Array
    adapter: Any
    adapter_frozen: Any
    opt_state: optax.OptState

    def variables(self, params: Any) -> dict[str, Any]:
        """The collections that the decoder is applied with."""
        return {
            'params': params,
            'adapter': self.adapter,
            'adapter_frozen': self.adapter_frozen,
        }


def create_state(
    model: Decoder, optimizer: optax.GradientTransformation, seed: int | jax.Array, params: Any
) -> TrainState:
    """A fresh state for a base with these parameters, from which DoRA's magnitudes start.

    Where a mesh is set, leaves and their moments are split over it.
    """
    key = jax.random.key(seed)
    create = functools.partial(_create, model, optimizer)
    where = rules.result_shardings(create, key, params)
    return jax.jit(lambda *args: nn.unbox(create(*args)), out_shardings=where)(key, params)


def abstract_state(
    model: Decoder, optimizer: optax.GradientTransformation, params: Any
) -> TrainState:
    """The shapes of `create_state`, and where they are to be if a mesh is set."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return rules.abstract(jax.eval_shape(functools.partial(_create, model, optimizer), key, params))


def starting_adapter(model: Decoder, seed: int) -> dict[str, Any]:
    """The adapter's collections of `create_state`, without a base.

    DoRA's magnitudes are the exception: they start from the base, and here from zeros.
    """
    shapes = nn.unbox(abstract_variables(model))['params']

    def create(key: jax.Array) -> Any:
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return nn.unbox(_start(model, key, params))

    return jax.jit(create)(jax.random.key(seed))


def _create(
    model: Decoder, optimizer: optax.GradientTransformation, key: jax.Array, params: Any
) -> TrainState:
    """With the names of the leaves' axes, which the optimizer's moments have, too."""
    variables = _start(model, key, params)
    adapter = variables.get('adapter', {})
    return TrainState(
        step=jnp.int32(0),
        adapter=adapter,
        adapter_frozen=variables.get('adapter_frozen', {}),
        opt_state=optimizer.init(adapter),
    )


def _start(model: Decoder, key: jax.Array, params: Any) -> Any:
    """The adapter's collections before the first step."""
    one = jnp.ones((1, 1), jnp.int32)
    made = ['adapter', 'adapter_frozen']
    _, variables = model.apply(
        {'params': params}, one, one, one, rngs={'params': key}, mutable=made
    )
    return variables

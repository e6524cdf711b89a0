"""What a run trains and carries from step to step."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from malora_jax.models import Decoder


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


@functools.cache
def abstract_variables(model: Decoder) -> Any:
    """Shapes of the decoder's collections, with their logical axis names (boxed)."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def create_state(model: Decoder, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state. The base's parameters are not made: the compiler drops them."""

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        variables = nn.unbox(_init(model, key))
        adapter = variables.get('adapter', {})
        return TrainState(
            step=jnp.int32(0),
            adapter=adapter,
            adapter_frozen=variables.get('adapter_frozen', {}),
            opt_state=optimizer.init(adapter),
        )

    return create(jax.random.key(seed))


def _init(model: Decoder, key: jax.Array) -> Any:
    one = jnp.ones((1, 1), jnp.int32)
    return model.init(key, one, one, one)

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
    one = jnp.ones((1, 1), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), one, one, one))


def create_state(
    model: Decoder, optimizer: optax.GradientTransformation, seed: int, params: Any
) -> TrainState:
    """A fresh state for a base with these parameters, from which DoRA's magnitudes start."""

    @jax.jit
    def create(key: jax.Array, params: Any) -> TrainState:
        one = jnp.ones((1, 1), jnp.int32)
        made = ['adapter', 'adapter_frozen']
        _, variables = model.apply(
            {'params': params}, one, one, one, rngs={'params': key}, mutable=made
        )
        variables = nn.unbox(variables)
        adapter = variables.get('adapter', {})
        return TrainState(
            step=jnp.int32(0),
            adapter=adapter,
            adapter_frozen=variables.get('adapter_frozen', {}),
            opt_state=optimizer.init(adapter),
        )

    return create(jax.random.key(seed), params)

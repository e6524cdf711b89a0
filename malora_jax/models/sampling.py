"""Drawing tokens: temperature and nucleus, with a random key for each answer.

Dimension letters: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import struct

from malora_jax import errors


class Draws(struct.PyTreeNode):
    """How tokens are drawn.

    Attributes:
        keys: (B,), a random key for each answer.
        temperature: () float32, what logits are divided by; positive.
        top_p: () float32; tokens are drawn from the most probable ones, as few as together have at
            least this probability (nucleus sampling, Holtzman et al. 2020).
    """

    keys: jax.Array
    temperature: jax.Array
    top_p: jax.Array


def check_sampling(samples: int, temperature: float, top_p: float) -> None:
    """Checks how many answers are drawn for a prompt, and how.

    Raises:
        UserError: a value out of range, by its name.
    """
    if samples < 1:
        raise errors.out_of_range('samples', samples, 'at least 1')
    if not temperature >= 0:
        raise errors.out_of_range('temperature', temperature, 'at least 0')
    if not 0 < top_p <= 1:
        raise errors.out_of_range('top_p', top_p, 'above 0 and at most 1')
    if samples > 1 and temperature == 0:
        raise errors.out_of_range('temperature', temperature, f'positive for {samples} samples')


def keys_of(seed: int, prompts: int, samples: int) -> jax.Array:
    """(prompts · samples,) keys; one does not depend on how many there are."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    of_prompts = fold(jax.random.key(seed), jnp.arange(prompts))
    return jax.vmap(fold, (0, None))(of_prompts, jnp.arange(samples)).reshape(-1)


def sample(logits_BV: jax.Array, draws: Draws, place: jax.Array) -> jax.Array:
    """Draws the next token of each row.

    Args:
        logits_BV: float32.
        draws: how.
        place: () int32, the number of the token in its answer.

    Returns:
        (B,) int32.
    """
    scaled_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / draws.temperature
    scaled_BV = jax.lax.cond(
        draws.top_p < 1, lambda x: _nucleus(x, draws.top_p), lambda x: x, scaled_BV
    )
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(draws.keys, place)
    return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)


def _nucleus(logits_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits, −inf outside of the nucleus. As probable as its last token is within it.

    The least probability is found by bisection over bit patterns, which are in the order of the
    floats they stand for: to sort a vocabulary takes ten times as long on CPU.
    """
    chance_BV = jax.nn.softmax(logits_BV, axis=-1)
    bits_BV = jax.lax.bitcast_convert_type(chance_BV, jnp.int32)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        sum_B1 = jnp.where(bits_BV >= middle_B1, chance_BV, 0).sum(axis=-1, keepdims=True)
        enough_B1 = sum_B1 >= top_p
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    low_B1 = jnp.zeros_like(bits_BV[:, :1])
    high_B1 = jnp.full_like(low_B1, 1 << 30)  # The bits of 2.0.
    least_B1, _ = jax.lax.fori_loop(0, 30, halve, (low_B1, high_B1))
    return jnp.where(bits_BV < least_B1, -jnp.inf, logits_BV)

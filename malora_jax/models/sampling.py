"""Sampling of tokens: temperature, top-k and nucleus (top-p), with a PRNG key for each answer.

Dimension letters: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import struct

from malora_jax import errors

# Largest int32, as `top_k` is an int32 on the device.
MAX_TOP_K = 2**31 - 1


class SamplingParams(struct.PyTreeNode):
    """Sampling settings of each row of a batch.

    Attributes:
        keys: (B,) PRNG key of each answer.
        temperature: (B,) float32 divisor of the logits; 0 for greedy decoding.
        top_k: (B,) int32 number of most probable tokens to sample from, plus any that tie with the
            last of them; 0 for all tokens.
        top_p: (B,) float32 probability mass of nucleus sampling (Holtzman et al. 2020): sample from
            the smallest set of most probable tokens that has at least this probability, plus ties.
            It applies after `temperature` and `top_k`; 1 for all tokens.
    """

    keys: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def check_sampling(samples: int, temperature: float, top_k: int, top_p: float) -> None:
    """Check sampling settings that a user has chosen.

    Args:
        samples: Number of answers for each prompt, at least 1.
        temperature: Sampling temperature, at least 0; positive for several samples.
        top_k: Number of most probable tokens to sample from, at least 0.
        top_p: Probability mass of nucleus sampling, in (0, 1].

    Raises:
        UserError: A value is out of range; the message names it.
    """
    if samples < 1:
        raise errors.out_of_range('samples', samples, 'at least 1')
    if not temperature >= 0:
        raise errors.out_of_range('temperature', temperature, 'at least 0')
    if top_k < 0:
        raise errors.out_of_range('top_k', top_k, 'at least 0')
    if top_k > MAX_TOP_K:
        raise errors.out_of_range('top_k', top_k, f'at most {MAX_TOP_K:,}')
    if not 0 < top_p <= 1:
        raise errors.out_of_range('top_p', top_p, 'above 0 and at most 1')
    if samples > 1 and temperature == 0:
        raise errors.out_of_range('temperature', temperature, f'positive for {samples} samples')


def sampling_keys(seed: int, num_prompts: int, num_samples: int) -> jax.Array:
    """Return a PRNG key for each sample of each prompt.

    Args:
        seed: Random seed.
        num_prompts: Number of prompts.
        num_samples: Number of samples for each prompt.

    Returns:
        (num_prompts · num_samples,) PRNG keys, ordered by prompt and then by sample. A key depends
        only on the seed, the index of its prompt and the index of its sample.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    prompt_keys = fold(jax.random.key(seed), jnp.arange(num_prompts))
    return jax.vmap(fold, (0, None))(prompt_keys, jnp.arange(num_samples)).reshape(-1)


def sample(logits_BV: jax.Array, sampling: SamplingParams, index_B: jax.Array) -> jax.Array:
    """Sample the next token of each row.

    Args:
        logits_BV: float32 logits.
        sampling: Sampling settings of each row.
        index_B: int32 index of the token in its answer; it is folded into the row's key.

    Returns:
        (B,) int32 token ids.
    """
    greedy_B = _most_probable(logits_BV)

    def draw() -> jax.Array:
        # Greedy rows ignore the sampled token; 1 avoids their division by zero.
        temperature_B = jnp.where(sampling.temperature > 0, sampling.temperature, 1)
        scaled_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / temperature_B[:, None]
        for restrict, limit_B, applies_B in (
            (_mask_top_k, sampling.top_k, sampling.top_k > 0),
            (_mask_top_p, sampling.top_p, sampling.top_p < 1),
        ):
            scaled_BV = jax.lax.cond(applies_B.any(), restrict, lambda x, _: x, scaled_BV, limit_B)
        keys_B = jax.vmap(jax.random.fold_in)(sampling.keys, index_B)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)
        return jnp.where(sampling.temperature > 0, drawn_B, greedy_B)

    return jax.lax.cond((sampling.temperature > 0).any(), draw, lambda: greedy_B)


def _most_probable(logits_BV: jax.Array) -> jax.Array:
    """Return the first index of the largest logit of each row, (B,) int32; 0 if a logit is NaN.

    On CPU, `argmax` takes seven times as long.
    """
    V = logits_BV.shape[-1]
    is_less_BV = logits_BV < logits_BV.max(axis=-1, keepdims=True)
    return jnp.where(is_less_BV, V, jnp.arange(V, dtype=jnp.int32)[None]).min(axis=-1)


def _mask_top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """Set logits to −inf except for the k most probable tokens of each row; k = 0 keeps all."""
    count_B = jnp.where(top_k_B > 0, top_k_B, logits_BV.shape[-1])
    ones_BV = jnp.ones_like(logits_BV, jnp.int32)
    return _keep_smallest_set(logits_BV, ones_BV, count_B)


def _mask_top_p(logits_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Set logits to −inf except for the nucleus of each row."""
    # A probability that float32 rounds to zero would keep no token at all.
    target_B = jnp.maximum(top_p_B, jnp.finfo(jnp.float32).tiny)
    return _keep_smallest_set(logits_BV, jax.nn.softmax(logits_BV, axis=-1), target_B)


def _keep_smallest_set(
    logits_BV: jax.Array, weight_BV: jax.Array, target_B: jax.Array
) -> jax.Array:
    """Keep the smallest set of most probable tokens whose weights sum to `target_B`, plus ties.

    Tokens are added to the set in order of decreasing probability. The lowest probability to keep
    is found by bisection. Sorting the vocabulary would take ten times as long on CPU. The bisection
    is over the bits of the float32 probabilities, read as integers: the order of non-negative
    floats is that of their bits, and 30 steps find the exact value.

    Args:
        logits_BV: float32 logits.
        weight_BV: Non-negative weight of each token: 1 for top-k, its probability for top-p.
        target_B: Sum of weights that the tokens of each row must reach: k or p.

    Returns:
        (B, V) logits of the kept tokens; −inf for the other tokens.
    """
    probability_BV = jax.nn.softmax(logits_BV, axis=-1)
    bits_BV = jax.lax.bitcast_convert_type(probability_BV, jnp.int32)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        sum_B1 = jnp.where(bits_BV >= middle_B1, weight_BV, 0).sum(axis=-1, keepdims=True)
        enough_B1 = sum_B1 >= target_B[:, None]
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    low_B1 = jnp.zeros_like(bits_BV[:, :1])
    high_B1 = jnp.full_like(low_B1, 1 << 30)  # The bits of 2.0.
    threshold_B1, _ = jax.lax.fori_loop(0, 30, halve, (low_B1, high_B1))
    return jnp.where(bits_BV < threshold_B1, -jnp.inf, logits_BV)

"""The next token of each text, sampled from the model's hidden states.

Dimension letters: B texts, W decode steps, V vocabulary, A top log-probabilities; others as in
`decoder`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from malora_jax.models.decoder import Decoder, logits, output_head
from malora_jax.models.sampling import SamplingParams, sample

# A: number of top log-probabilities that are returned with each new token.
NUM_TOP_LOGPROBS = 20


class SampledTokens(struct.PyTreeNode):
    """Sampled tokens with their log-probabilities.

    Log-probabilities are those at temperature 1, without top-k or top-p. The shapes below are those
    that `decode` returns, for B texts and W decode steps. `prefill` samples one token per prompt,
    so its result has one leading axis R. A is the number of most probable tokens.

    Attributes:
        token: (B, W) int32 token ids.
        log_probability: (B, W) float32 log-probabilities of the tokens, in nats.
        top_tokens: (B, W, A) int32 ids of the most probable tokens; zeros if no text asks for them.
        top_log_probability: (B, W, A) float32 log-probabilities of `top_tokens`, in nats.
    """

    token: jax.Array
    log_probability: jax.Array
    top_tokens: jax.Array
    top_log_probability: jax.Array


def sample_next(
    model: Decoder,
    variables: Any,
    hidden_BD: jax.Array,
    sampling: SamplingParams,
    index_B: jax.Array,
    wants_logprobs: jax.Array,
) -> SampledTokens:
    """Sample the next token of each text from the model's hidden states.

    Args:
        model: Decoder.
        variables: Collections of the decoder.
        hidden_BD: Hidden states of each text's last token.
        sampling: Sampling settings of each text.
        index_B: int32 index of the new token in its answer; it selects the token's random numbers.
        wants_logprobs: bool; if any entry is True, the most probable tokens are computed for all.

    Returns:
        `SampledTokens` with a leading axis B.
    """
    # On CPU, this order of the factors is faster: the head need not be rearranged. Without the
    # barrier, XLA would swap them to save the transposition.
    head_VD = output_head(model.config, variables['params'])
    logits_BV = jax.lax.optimization_barrier(logits(head_VD, hidden_BD)).T
    token_B = sample(logits_BV, sampling, index_B)
    log_total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    own_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
    count = num_top_logprobs(model)

    def most_probable() -> tuple[jax.Array, jax.Array]:
        values_BA, tokens_BA = jax.lax.top_k(logits_BV, count)
        return tokens_BA, values_BA - log_total_B1

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = (token_B.shape[0], count)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    top_tokens_BA, top_log_BA = jax.lax.cond(wants_logprobs.any(), most_probable, nothing)
    return SampledTokens(token_B, (own_B1 - log_total_B1)[:, 0], top_tokens_BA, top_log_BA)


def num_top_logprobs(model: Decoder) -> int:
    """Return A, the number of most probable tokens: at most the size of the vocabulary."""
    return min(NUM_TOP_LOGPROBS, model.config.vocab_size)

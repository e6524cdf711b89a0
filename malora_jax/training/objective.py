"""Cross-entropy loss through a frozen output head, computed only for tokens that carry loss.

The positions that carry loss are sorted to the front and processed in chunks. If a tenth of the
tokens of a batch are answers, the head takes a tenth of the time. The head is frozen, so the
forward pass already computes the gradient with respect to the hidden states. The logits of a chunk
therefore never have to be saved for the backward pass.

Dimension letters: N tokens, D model width, V vocabulary, G groups of tokens (tasks), M tokens of a
chunk.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from malora_jax.distributed import sharding
from malora_jax.models.decoder import logits

# Tokens per multiplication with the head: enough for full speed, but few logits in memory. The
# tokens after the last full chunk are processed in smaller chunks, to compute less padding.
CHUNK_TOKENS = 256
SMALL_CHUNK_TOKENS = 64


def cross_entropy(
    hidden_ND: jax.Array, head_VD: jax.Array, targets_N: jax.Array, weights_NG: jax.Array
) -> jax.Array:
    """Return the summed cross-entropy of each group of tokens, in nats.

    Args:
        hidden_ND: (N, D), final hidden states. Only this argument has a gradient.
        head_VD: (V, D), frozen output projection.
        targets_N: (N,) int32, the token id that each position should predict.
        weights_NG: (N, G) float32, weight of each position in each group. A position whose weights
            are all zero carries no loss, and the head is not computed for it.

    Returns:
        (G,) float32: Σ_n weights[n, g] · (−log p(target_n)).
    """
    if not sharding.is_mesh_set():
        return _cross_entropy(hidden_ND, head_VD, targets_N, weights_NG)
    row_axes = sharding.LOGICAL_AXIS_RULES['rows']
    return _on_own_tokens(
        lambda *own: jax.lax.psum(_cross_entropy(*own), row_axes), PartitionSpec()
    )(hidden_ND, head_VD, targets_N, weights_NG)


def token_cross_entropy(
    hidden_ND: jax.Array, head_VD: jax.Array, targets_N: jax.Array, weights_N: jax.Array
) -> jax.Array:
    """Return the weighted cross-entropy of each token, in nats.

    Args:
        hidden_ND: (N, D), final hidden states. Only this argument has a gradient.
        head_VD: (V, D), frozen output projection.
        targets_N: (N,) int32, the token id that each position should predict.
        weights_N: (N,) float32, weight of each position. The head is not computed where it is zero.

    Returns:
        (N,) float32: weights[n] · (−log p(target_n)).
    """
    if not sharding.is_mesh_set():
        return _token_cross_entropy(hidden_ND, head_VD, targets_N, weights_N)
    rows = PartitionSpec(sharding.LOGICAL_AXIS_RULES['rows'])
    return _on_own_tokens(_token_cross_entropy, rows)(hidden_ND, head_VD, targets_N, weights_N)


def _on_own_tokens(function: Callable[..., jax.Array], result: PartitionSpec) -> Callable[..., Any]:
    """Return a function of hidden states, head, targets and weights that each device applies.

    Under data parallelism and FSDP, each device sorts and processes only its own tokens.
    """
    row_axes = sharding.LOGICAL_AXIS_RULES['rows']
    sharded, replicated = PartitionSpec(row_axes), PartitionSpec()
    return jax.shard_map(
        function,
        in_specs=(sharded, replicated, sharded, sharded),
        out_specs=result,
        axis_names=set(row_axes),
        check_vma=False,
    )


@jax.custom_vjp
def _cross_entropy(hidden_ND, head_VD, targets_N, weights_NG):
    return _forward(hidden_ND, head_VD, targets_N, weights_NG)[0]


def _forward(hidden_ND, head_VD, targets_N, weights_NG):
    """Return the loss of each group, and the residuals for the backward pass.

    There are three residuals: the gradient of each token's loss with respect to its hidden state;
    `weights_NG`; and an empty array. The dtype of the empty array is that of the hidden states. The
    backward pass returns a gradient of this dtype.
    """

    def add(loss_G, index_M, loss_M):
        weights_MG = weights_NG.at[index_M].get(mode='fill', fill_value=0)
        return loss_G + (loss_M[:, None] * weights_MG).sum(axis=0)

    carries_N = jnp.any(weights_NG != 0, axis=-1)
    start_G = jnp.zeros(weights_NG.shape[-1])
    loss_G, gradient_ND = _over_chunks(hidden_ND, head_VD, targets_N, carries_N, add, start_G)
    return loss_G, (gradient_ND, weights_NG, hidden_ND[:0])


def _over_chunks(hidden_ND, head_VD, targets_N, carries_N, add, start):
    """Compute the losses of the tokens that carry loss, chunk by chunk.

    Args:
        hidden_ND: (N, D), final hidden states.
        head_VD: (V, D), output projection.
        targets_N: (N,) int32, token ids.
        carries_N: (N,) bool, whether each position carries loss.
        add: Function of a result, the (M,) positions of a chunk and their (M,) losses that returns
            the next result. Position N is padding.
        start: First result.

    Returns:
        The last result; and the gradient of each token's loss with respect to its hidden state,
        (N, D) float32.
    """
    tokens = hidden_ND.shape[0]
    count = carries_N.sum()
    # The padding makes the last chunk full. Index N is out of bounds, so it reads zeros and its
    # writes are dropped.
    order_N = jnp.argsort(~carries_N, stable=True)
    order_N = jnp.where(jnp.arange(tokens) < count, order_N, tokens)
    order_N = jnp.pad(order_N, (0, SMALL_CHUNK_TOKENS), constant_values=tokens)

    def one_chunk(first, size, carry):
        result, gradient_ND = carry
        index_M = jax.lax.dynamic_slice(order_N, (first,), (size,))
        hidden_MD = hidden_ND.at[index_M].get(mode='fill', fill_value=0)
        target_M = targets_N.at[index_M].get(mode='fill', fill_value=0)
        logits_MV = logits(hidden_MD, head_VD)
        top_M1 = logits_MV.max(axis=-1, keepdims=True)
        exp_MV = jnp.exp(logits_MV - top_M1)
        sum_M1 = exp_MV.sum(axis=-1, keepdims=True)
        target_logit_M = jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)[:, 0]
        loss_M = (jnp.log(sum_M1) + top_M1)[:, 0] - target_logit_M
        # d loss / d hidden = (softmax − one-hot) head. The one-hot part is a row of the head.
        softmax_MV = (exp_MV / sum_M1).astype(head_VD.dtype)
        gradient_MD = jnp.matmul(softmax_MV, head_VD, preferred_element_type=jnp.float32)
        gradient_MD -= head_VD[target_M]
        gradient_ND = gradient_ND.at[index_M].set(gradient_MD, mode='drop')
        return add(result, index_M, loss_M), gradient_ND

    def chunks(first, end, size, carry):
        return jax.lax.fori_loop(
            0,
            (end - first + size - 1) // size,
            lambda i, carry: one_chunk(first + i * size, size, carry),
            carry,
        )

    chunk = min(CHUNK_TOKENS, tokens)
    full = count - count % chunk
    carry = chunks(0, full, chunk, (start, jnp.zeros(hidden_ND.shape, jnp.float32)))
    return chunks(full, count, SMALL_CHUNK_TOKENS, carry)


def _backward(residuals, cotangent_G):
    gradient_ND, weights_NG, like = residuals
    scale_N1 = (weights_NG * cotangent_G[None]).sum(axis=1, keepdims=True)
    return (gradient_ND * scale_N1).astype(like.dtype), None, None, None


_cross_entropy.defvjp(_forward, _backward)


@jax.custom_vjp
def _token_cross_entropy(hidden_ND, head_VD, targets_N, weights_N):
    return _token_forward(hidden_ND, head_VD, targets_N, weights_N)[0]


def _token_forward(hidden_ND, head_VD, targets_N, weights_N):
    """Return the loss of each token, and the residuals as `_forward` does."""

    def add(loss_N, index_M, loss_M):
        return loss_N.at[index_M].set(loss_M, mode='drop')

    start_N = jnp.zeros(weights_N.shape)
    loss_N, gradient_ND = _over_chunks(hidden_ND, head_VD, targets_N, weights_N != 0, add, start_N)
    return weights_N * loss_N, (gradient_ND, weights_N, hidden_ND[:0])


def _token_backward(residuals, cotangent_N):
    gradient_ND, weights_N, like = residuals
    scale_N1 = (weights_N * cotangent_N)[:, None]
    return (gradient_ND * scale_N1).astype(like.dtype), None, None, None


_token_cross_entropy.defvjp(_token_forward, _token_backward)

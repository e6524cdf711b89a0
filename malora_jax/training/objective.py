"""Cross-entropy loss through a frozen output head, computed only for tokens that carry loss.

The positions that carry loss are sorted to the front and processed in chunks. If a tenth of the
tokens of a batch are answers, the head takes a tenth of the time. The head is frozen, so the
forward pass already computes the gradient with respect to the hidden states. The logits of a chunk
therefore never have to be saved for the backward pass.

Dimension letters: N tokens, D model width, V vocabulary, G groups of tokens (tasks), M tokens of a
chunk.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from malora_jax.distributed import sharding
from malora_jax.models.decoder import logits

# Tokens per multiplication with the head: enough for full speed, but few logits in memory.
CHUNK_TOKENS = 256


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
    # Under data parallelism and FSDP, each device sorts and processes only its own tokens.
    row_axes = sharding.LOGICAL_AXIS_RULES['rows']
    sharded, replicated = PartitionSpec(row_axes), PartitionSpec()
    return jax.shard_map(
        lambda *own: jax.lax.psum(_cross_entropy(*own), row_axes),
        in_specs=(sharded, replicated, sharded, sharded),
        out_specs=replicated,
        axis_names=set(row_axes),
        check_vma=False,
    )(hidden_ND, head_VD, targets_N, weights_NG)


@jax.custom_vjp
def _cross_entropy(hidden_ND, head_VD, targets_N, weights_NG):
    return _forward(hidden_ND, head_VD, targets_N, weights_NG)[0]


def _forward(hidden_ND, head_VD, targets_N, weights_NG):
    """Return the loss of each group, and the residuals for the backward pass.

    There are three residuals: the gradient of each token's loss with respect to its hidden state;
    `weights_NG`; and an empty array. The dtype of the empty array is that of the hidden states. The
    backward pass returns a gradient of this dtype.
    """
    tokens = hidden_ND.shape[0]
    chunk = min(CHUNK_TOKENS, tokens)
    carries_N = jnp.any(weights_NG != 0, axis=-1)
    count = carries_N.sum()
    # The padding makes the last chunk full. Index N is out of bounds, so it reads zeros and its
    # writes are dropped.
    order_N = jnp.argsort(~carries_N, stable=True)
    order_N = jnp.where(jnp.arange(tokens) < count, order_N, tokens)
    order_N = jnp.pad(order_N, (0, chunk), constant_values=tokens)

    def one_chunk(i, carry):
        loss_G, gradient_ND = carry
        index_M = jax.lax.dynamic_slice(order_N, (i * chunk,), (chunk,))
        hidden_MD = hidden_ND.at[index_M].get(mode='fill', fill_value=0)
        target_M = targets_N.at[index_M].get(mode='fill', fill_value=0)
        weights_MG = weights_NG.at[index_M].get(mode='fill', fill_value=0)
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
        return loss_G + (loss_M[:, None] * weights_MG).sum(axis=0), gradient_ND

    start = (jnp.zeros(weights_NG.shape[-1]), jnp.zeros(hidden_ND.shape, jnp.float32))
    chunks = (count + chunk - 1) // chunk
    loss_G, gradient_ND = jax.lax.fori_loop(0, chunks, one_chunk, start)
    return loss_G, (gradient_ND, weights_NG, hidden_ND[:0])


def _backward(residuals, cotangent_G):
    gradient_ND, weights_NG, like = residuals
    scale_N1 = (weights_NG * cotangent_G[None]).sum(axis=1, keepdims=True)
    return (gradient_ND * scale_N1).astype(like.dtype), None, None, None


_cross_entropy.defvjp(_forward, _backward)

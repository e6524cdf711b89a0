"""Check of attention backends: values and gradients on random packings, against float64 NumPy.

Dimension letters: B batch, T sequence, S tokens of a segment, H query heads, K key/value heads,
C head width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.models import attention, attention_backends

# Maximum errors as `errors` returns them, by backend and dtype; the matrix products of a device
# may be less exact than those of an interpreted kernel.
TOLERANCES = {
    ('xla', 'float32'): 1e-5,
    ('xla', 'bfloat16'): 2e-2,
    ('splash', 'float32'): 1e-5,
    ('splash', 'bfloat16'): 2e-2,
    ('triton', 'float32'): 1e-5,
    ('triton', 'bfloat16'): 2e-2,
}
OUTPUTS = ('value', 'dq', 'dk', 'dv')


class Packing(NamedTuple):
    """Inputs of attention for packed rows, and a cotangent of its output.

    Attributes:
        q: (B, T, H, C) queries.
        k: (B, T, K, C) keys.
        v: (B, T, K, C) values.
        segments: (B, T) int32 segment of each token; 0 is padding, at the end of a row.
        cotangent: (B, T, H, C) cotangent of the output.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array
    cotangent: jax.Array


def random_packing(
    rng: np.random.Generator,
    *,
    rows: int = 2,
    length: int,
    max_segments: int,
    num_heads: int,
    num_kv_heads: int,
    head_width: int,
    dtype: Any,
) -> Packing:
    """Return rows with normally distributed inputs, random segment lengths and random padding.

    Args:
        rng: Random generator.
        rows: Number of rows, B.
        length: Number of tokens of a row, T.
        max_segments: Maximum number of segments of a row; the number is random.
        num_heads: Number of query heads, H.
        num_kv_heads: Number of key/value heads, K.
        head_width: Width of a head, C.
        dtype: Dtype of all arrays except the segments.
    """

    def normal(heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, length, heads, head_width)), dtype)

    segments_BT = np.zeros((rows, length), np.int32)
    for row_T in segments_BT:
        tokens = int(rng.integers(1, length + 1))
        count = int(rng.integers(1, min(max_segments, tokens) + 1))
        starts = rng.choice(np.arange(1, tokens), count - 1, replace=False)
        row_T[:tokens] = 1 + (np.arange(tokens)[:, None] >= starts[None]).sum(axis=1)
    q, k, v, cotangent = map(normal, (num_heads, num_kv_heads, num_kv_heads, num_heads))
    return Packing(q, k, v, jnp.asarray(segments_BT), cotangent)


def reference(packing: Packing) -> tuple[np.ndarray, ...]:
    """Return the value and the gradients of q, k and v, computed in float64, segment by segment."""
    inputs = packing.q, packing.k, packing.v, packing.cotangent
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in inputs)
    value, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    heads_per_key, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    segments_BT = np.asarray(packing.segments)
    for row, h in np.ndindex(q.shape[0], q.shape[2]):
        for segment in np.unique(segments_BT[row]):
            tokens = np.flatnonzero(segments_BT[row] == segment)
            query, key = (row, tokens, h), (row, tokens, h // heads_per_key)
            scores_SS = np.where(
                np.tri(len(tokens), dtype=bool), scale * q[query] @ k[key].T, -np.inf
            )
            weights_SS = np.exp(scores_SS - scores_SS.max(axis=1, keepdims=True))
            weights_SS /= weights_SS.sum(axis=1, keepdims=True)
            dweights_SS = cotangent[query] @ v[key].T
            mean_S1 = (weights_SS * dweights_SS).sum(axis=1, keepdims=True)
            dscores_SS = scale * weights_SS * (dweights_SS - mean_S1)
            value[query] = weights_SS @ v[key]
            dq[query] = dscores_SS @ k[key]
            dk[key] += dscores_SS.T @ q[query]
            dv[key] += weights_SS.T @ cotangent[query]
    return value, dq, dk, dv


def errors(backend: str, packing: Packing, interpret: bool = False) -> dict[str, float]:
    """Return the largest errors of a backend's value and gradients on a packing.

    Args:
        backend: Name of the backend, one of 'xla', 'splash' and 'triton'.
        packing: Inputs of attention.
        interpret: Whether a kernel is interpreted, which works on every device.

    Returns:
        For each of `OUTPUTS`, the largest absolute error divided by the largest entry of the
        float64 result, or by 1 if all entries are smaller. The error is infinite if an output is
        not finite.
    """
    found = value_and_gradients(attention_function(backend, interpret), packing)
    return relative_errors(found, reference(packing))


def relative_errors(
    found: tuple[jax.Array, ...], expected: tuple[np.ndarray, ...]
) -> dict[str, float]:
    """Return the largest error of each of `OUTPUTS`, as described in `errors`.

    Args:
        found: Outputs to check.
        expected: Outputs in float64.
    """
    result = {}
    for name, ours, right in zip(OUTPUTS, found, expected, strict=True):
        error = np.abs(np.asarray(ours, np.float64) - right).max() / max(1, np.abs(right).max())
        result[name] = float(error) if np.isfinite(error) else float('inf')
    return result


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(
    function: Callable[..., jax.Array], packing: Packing
) -> tuple[jax.Array, ...]:
    """Return the value of an attention function, and its gradients of q, k and v.

    Args:
        function: Function of q, k, v and the segments.
        packing: Inputs of the function, and the cotangent of its output.
    """
    q, k, v, segments, cotangent = packing
    value, pull = jax.vjp(lambda q, k, v: function(q, k, v, segments), q, k, v)
    return value, *pull(cotangent)


@functools.cache
def attention_function(backend: str, interpret: bool = False) -> Callable[..., jax.Array]:
    """Return the attention of a backend on a single device, a function of q, k, v and the segments.

    Args:
        backend: Name of the backend, one of 'xla', 'splash' and 'triton'.
        interpret: Whether a kernel is interpreted, which works on every device.
    """
    if backend == 'xla':
        return attention.attend
    kernel = attention_backends.KERNELS[backend]
    return attention_backends.pad_to_blocks(functools.partial(kernel, interpret=interpret))

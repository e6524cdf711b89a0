"""Frozen kernels of 8 or 4 bits: how they are kept, and products with them.

* int8: 255 even steps, a scale for each output;
* w8a8: the same, and activations and their gradients become int8 for the time of a product;
* int4: 16 even steps, a scale for up to 64 inputs of an output;
* nf4: 16 quantiles of a normal distribution (QLoRA, Dettmers et al. 2023), scales as int4.

The codes and scales are Qwix's, which is asked for them once, when weights are loaded. Codes of 4
bits lie two in a byte, which every backend has: XLA unpacks arrays of 4-bit numbers on a CPU, and
those of all layers at once.

A product turns the codes of one linear into numbers for as long as it takes, and the backward pass
does so again: without a word about it, JAX would keep the numbers of all layers for it.

Dimension letters: N tokens, D inputs, F outputs, S tiles of the inputs.
"""

import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from malora_jax.errors import UserError

KINDS = ('int8', 'w8a8', 'int4', 'nf4')
_BYTES = ('int8', 'w8a8')
# Inputs that share a scale, of the kinds with 4 bits.
_TILE = 64
# From appendix E of the QLoRA paper.
_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194972992, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


class Quantized(struct.PyTreeNode):
    """A kernel.

    Attributes:
        codes: (D, F) int8; of 4 bits, (D / 2, F) uint8: the first half of the inputs in the lower
            bits, the second in the upper.
        scale: (S, F) float32.
        kind: among `KINDS`.
    """

    codes: jax.Array
    scale: jax.Array
    kind: str = struct.field(pytree_node=False)

    def values(self) -> jax.Array:
        """(D, F) float32, what the codes stand for."""
        if self.kind in _BYTES:
            return self.codes * self.scale
        return jnp.concatenate(self.halves())

    def halves(self) -> tuple[jax.Array, jax.Array]:
        """Those of 4 bits, by halves of the inputs: to join them would move all of them."""
        numbers = _nf4 if self.kind == 'nf4' else _int4
        S, F = self.scale.shape

        def half(codes_CF: jax.Array, scale_SF: jax.Array) -> jax.Array:
            tiled_SIF = numbers(codes_CF).reshape(S // 2, -1, F)
            return (tiled_SIF * scale_SF[:, None]).reshape(-1, F)

        return (
            half(self.codes & 15, self.scale[: S // 2]),
            half(self.codes >> 4, self.scale[S // 2 :]),
        )


def shapes(kind: str, inputs: int, outputs: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of codes and scales. A tile is the largest power of two, up to 64, in half of the inputs.

    Raises:
        UserError: an odd number of inputs, of 4 bits.
    """
    if kind in _BYTES:
        return (inputs, outputs), (1, outputs)
    if inputs % 2:
        raise UserError(f'model.quantize is {kind!r}; a linear of {inputs} inputs needs int8.')
    return (inputs // 2, outputs), (inputs // math.gcd(inputs // 2, _TILE), outputs)


def codes_dtype(kind: str) -> Any:
    """Of codes."""
    return jnp.dtype(jnp.int8 if kind in _BYTES else jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def quantize(kind: str, kernel_DF: jax.Array) -> Quantized:
    """The codes of a kernel, given in float32."""
    D, F = kernel_DF.shape
    tile = D // shapes(kind, D, F)[1][0]
    qtype = 'int8' if kind in _BYTES else kind
    found = _qwix().quantize(kernel_DF, qtype, channelwise_axes=(1,), tiled_axes={0: tile})
    codes = found.qvalue
    if kind not in _BYTES:
        codes = codes.astype(jnp.int8).astype(jnp.uint8) & 15
        codes = codes[: D // 2] | codes[D // 2 :] << 4
    return Quantized(codes, found.scale, kind)


@functools.partial(jax.checkpoint, prevent_cse=False)
def product(x_ND: jax.Array, kernel: Quantized) -> jax.Array:
    """(N, F), x W in the dtype of x, which alone is to have a gradient."""
    if kernel.kind == 'w8a8':
        return _int8_product(x_ND, kernel)
    if kernel.kind == 'int8':
        # The scales are those of the outputs: they need not meet the kernel.
        y_NF = jnp.matmul(x_ND, kernel.codes.astype(x_ND.dtype), preferred_element_type=jnp.float32)
        return (y_NF * kernel.scale).astype(x_ND.dtype)
    low, high = (half.astype(x_ND.dtype) for half in kernel.halves())
    return x_ND[:, : len(low)] @ low + x_ND[:, len(low) :] @ high


@jax.custom_vjp
def _int8_product(x_ND: jax.Array, kernel: Quantized) -> jax.Array:
    """Both sides in int8, forward and for the gradient of x, each token with a scale of its own.

    As in SwitchBack (Wortsman et al. 2023); the kernel's scales, one an output, go to the gradient
    before it becomes int8.
    """
    codes_ND, scale_N1 = _int8_rows(x_ND)
    y_NF = jnp.matmul(codes_ND, kernel.codes, preferred_element_type=jnp.int32)
    return (y_NF * scale_N1 * kernel.scale).astype(x_ND.dtype)


def _forward(x_ND: jax.Array, kernel: Quantized) -> tuple[jax.Array, Quantized]:
    return _int8_product(x_ND, kernel), kernel


def _backward(kernel: Quantized, dy_NF: jax.Array) -> tuple[jax.Array, None]:
    codes_NF, scale_N1 = _int8_rows(dy_NF * kernel.scale)
    dx_ND = jax.lax.dot_general(
        codes_NF, kernel.codes, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    return (dx_ND * scale_N1).astype(dy_NF.dtype), None


_int8_product.defvjp(_forward, _backward)


def _int8_rows(x_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes, and the scale (N, 1) float32 of each row, 1 where it is all zeros."""
    largest_N1 = jnp.abs(x_ND).max(axis=1, keepdims=True).astype(jnp.float32)
    # What is not a number stays so.
    scale_N1 = jnp.where(largest_N1 == 0, 1.0, largest_N1 / 127)
    return jnp.round(x_ND / scale_N1).astype(jnp.int8), scale_N1


def _int4(codes: jax.Array) -> jax.Array:
    return (codes ^ 8).astype(jnp.float32) - 8


def _nf4(codes: jax.Array) -> jax.Array:
    """Climbed step by step: looking them up is slow on TPUs, and XLA keeps selections on a CPU."""
    values = jnp.float32(_NF4[0])
    for code, step in enumerate(np.diff(_NF4), start=1):
        values += (codes >= code) * jnp.float32(step)
    return values


def _qwix() -> Any:
    """Qwix, imported where it is needed: it takes a second, and is optional."""
    try:
        return importlib.import_module('qwix')
    except ModuleNotFoundError as error:
        raise UserError(
            "model.quantize needs the package qwix: pip install 'malora_jax[quantize]'."
        ) from error

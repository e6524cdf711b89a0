"""Quantization of frozen kernels to 8 or 4 bits, and products with quantized kernels.

* int8: weight-only, 255 uniform steps, one scale per output;
* w8a8: weights quantized as in format int8; activations and their gradients are also quantized to
  int8, for each product;
* int4: weight-only, 16 uniform steps, one scale per output for each tile of up to 64 inputs;
* nf4: 16 quantiles of a normal distribution (QLoRA, Dettmers et al. 2023), scales as for int4.

Qwix computes codes and scales once, when weights are loaded. Two 4-bit codes are packed into a
byte. A 4-bit dtype would need more memory on CPU, where XLA would unpack the codes of all layers at
once.

A kernel is dequantized only while it is multiplied, and again in the backward pass
(rematerialization). Otherwise JAX would save the dequantized kernels of all layers for the backward
pass.

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

from malora_jax.errors import UserError, missing_extra

QUANT_FORMATS = ('int8', 'w8a8', 'int4', 'nf4')
_INT8_FORMATS = ('int8', 'w8a8')
# Largest number of inputs that share a scale in the 4-bit formats.
_TILE = 64
# NF4 values from appendix E of the QLoRA paper.
_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194972992, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


class QuantizedKernel(struct.PyTreeNode):
    """A quantized kernel with D inputs and F outputs.

    Attributes:
        codes: (D, F) int8. For 4-bit formats, (D / 2, F) uint8: the first half of the inputs is in
            the lower 4 bits, the second half in the upper.
        scale: (S, F) float32 scales. The inputs are divided into S tiles of consecutive inputs, and
            each tile has one scale per output; S is 1 for 8-bit formats.
        kind: Quantization format, one of `QUANT_FORMATS`.
    """

    codes: jax.Array
    scale: jax.Array
    kind: str = struct.field(pytree_node=False)

    def dequantize(self) -> jax.Array:
        """Return the dequantized kernel, (D, F) float32."""
        if self.kind in _INT8_FORMATS:
            return self.codes * self.scale
        return jnp.concatenate(self.dequantize_halves())

    def dequantize_halves(self) -> tuple[jax.Array, jax.Array]:
        """Return a dequantized 4-bit kernel as two arrays, (D / 2, F) float32 each.

        The first array is for the first half of the inputs, the second for the second half. A
        caller that multiplies each half separately avoids the copy of a concatenation.
        """
        numbers = _nf4 if self.kind == 'nf4' else _int4
        S, F = self.scale.shape

        def half(codes_CF: jax.Array, scale_SF: jax.Array) -> jax.Array:
            tiled_SIF = numbers(codes_CF).reshape(S // 2, -1, F)
            return (tiled_SIF * scale_SF[:, None]).reshape(-1, F)

        return (
            half(self.codes & 15, self.scale[: S // 2]),
            half(self.codes >> 4, self.scale[S // 2 :]),
        )


def quantized_shapes(
    kind: str, inputs: int, outputs: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of the codes and the scales of a kernel.

    In 4-bit formats, the inputs are divided into tiles, and each tile has its own scale. The tile
    size is the largest power of two, up to 64, that divides half the number of inputs, because
    one byte stores the codes of two inputs, one from each half.

    Raises:
        UserError: The number of inputs is odd and the format has 4 bits.
    """
    if kind in _INT8_FORMATS:
        return (inputs, outputs), (1, outputs)
    if inputs % 2:
        raise UserError(
            f'model.quantize is {kind!r}, which needs an even number of inputs; the model has a '
            f'linear with {inputs} inputs: use int8.'
        )
    return (inputs // 2, outputs), (inputs // math.gcd(inputs // 2, _TILE), outputs)


def codes_dtype(kind: str) -> Any:
    """Return the dtype of the codes: int8, or uint8 for packed 4-bit codes."""
    return jnp.dtype(jnp.int8 if kind in _INT8_FORMATS else jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def quantize(kind: str, kernel_DF: jax.Array) -> QuantizedKernel:
    """Quantize a float32 kernel.

    Args:
        kind: Quantization format, one of `QUANT_FORMATS`.
        kernel_DF: float32 kernel.

    Raises:
        UserError: The number of inputs is odd in a 4-bit format, or Qwix is not installed.
    """
    D, F = kernel_DF.shape
    tile = D // quantized_shapes(kind, D, F)[1][0]
    qtype = 'int8' if kind in _INT8_FORMATS else kind
    quantized = _qwix().quantize(kernel_DF, qtype, channelwise_axes=(1,), tiled_axes={0: tile})
    codes = quantized.qvalue
    if kind not in _INT8_FORMATS:
        codes = codes.astype(jnp.int8).astype(jnp.uint8) & 15
        codes = codes[: D // 2] | codes[D // 2 :] << 4
    return QuantizedKernel(codes, quantized.scale, kind)


@functools.partial(jax.checkpoint, prevent_cse=False)
def quantized_matmul(x_ND: jax.Array, kernel: QuantizedKernel) -> jax.Array:
    """Return the product x W with a quantized kernel, (N, F) in the dtype of x.

    Differentiate it with respect to x only: the kernel is frozen.
    """
    if kernel.kind == 'w8a8':
        return _int8_matmul(x_ND, kernel)
    if kernel.kind == 'int8':
        # With one scale per output, scaling the product replaces dequantizing the kernel.
        y_NF = jnp.matmul(x_ND, kernel.codes.astype(x_ND.dtype), preferred_element_type=jnp.float32)
        return (y_NF * kernel.scale).astype(x_ND.dtype)
    low, high = (half.astype(x_ND.dtype) for half in kernel.dequantize_halves())
    return x_ND[:, : len(low)] @ low + x_ND[:, len(low) :] @ high


@jax.custom_vjp
def _int8_matmul(x_ND: jax.Array, kernel: QuantizedKernel) -> jax.Array:
    """Quantize x to int8, and multiply it by an int8 kernel.

    The backward pass computes the gradient of x in int8, too. Activations and their gradients are
    quantized with one scale per token, as in SwitchBack (Wortsman et al. 2023). In the backward
    pass, the gradient of the output is multiplied by the kernel's scales, one per output, before it
    is quantized.
    """
    codes_ND, scale_N1 = _quantize_rows(x_ND)
    y_NF = jnp.matmul(codes_ND, kernel.codes, preferred_element_type=jnp.int32)
    return (y_NF * scale_N1 * kernel.scale).astype(x_ND.dtype)


def _forward(x_ND: jax.Array, kernel: QuantizedKernel) -> tuple[jax.Array, QuantizedKernel]:
    return _int8_matmul(x_ND, kernel), kernel


def _backward(kernel: QuantizedKernel, dy_NF: jax.Array) -> tuple[jax.Array, None]:
    codes_NF, scale_N1 = _quantize_rows(dy_NF * kernel.scale)
    dx_ND = jax.lax.dot_general(
        codes_NF, kernel.codes, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    return (dx_ND * scale_N1).astype(dy_NF.dtype), None


_int8_matmul.defvjp(_forward, _backward)


def _quantize_rows(x_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantize each row to int8.

    Returns:
        Codes (N, D), and the scale of each row, (N, 1) float32; it is 1 for a row of zeros.
    """
    largest_N1 = jnp.abs(x_ND).max(axis=1, keepdims=True).astype(jnp.float32)
    # A NaN makes the scale of its row NaN, and so reaches the output.
    scale_N1 = jnp.where(largest_N1 == 0, 1.0, largest_N1 / 127)
    return jnp.round(x_ND / scale_N1).astype(jnp.int8), scale_N1


def _int4(codes: jax.Array) -> jax.Array:
    return (codes ^ 8).astype(jnp.float32) - 8


def _nf4(codes: jax.Array) -> jax.Array:
    """Return the NF4 values of 4-bit codes.

    The value of a code is the lowest NF4 value plus the differences of neighboring NF4 values up to
    the code. A table look-up would be slow on TPUs. Nested selections (`jnp.where`) would need
    memory on CPU, where XLA keeps their intermediate results.
    """
    values = jnp.float32(_NF4[0])
    for code, step in enumerate(np.diff(_NF4), start=1):
        values += (codes >= code) * jnp.float32(step)
    return values


def _qwix() -> Any:
    """Import Qwix, which is optional and takes a second to import.

    Raises:
        UserError: Qwix is not installed.
    """
    try:
        return importlib.import_module('qwix')
    except ModuleNotFoundError as error:
        raise missing_extra('model.quantize needs the package qwix', 'quantize') from error

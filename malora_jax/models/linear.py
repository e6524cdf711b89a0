"""Linears with a frozen kernel, an adapter's update, and the dropout in front of it.

Dimension letters: N tokens, D inputs, F outputs, G groups of tokens (tasks).
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.adapters import AdapterConfig, LowRankExperts, Magnitude, compute
from malora_jax.distributed import rules
from malora_jax.models import quantize as quantize_lib


def parameter(
    module: nn.Module,
    name: str,
    start: Callable[..., jax.Array],
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    """A parameter of the base, with the logical names of its axes, as it is used."""
    boxed = nn.with_logical_partitioning(start, axes)
    value = cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))
    return rules.gather(value, axes)


class AdaptedLinear(nn.Module):
    """W x, plus the adapter's update where one is given; its leaves sit beside the kernel.

    With a magnitude (DoRA), the sum is multiplied by a factor for each output. Dropout is in front
    of the down-projection as in every method: W sees the whole input.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    adapter: AdapterConfig | None
    has_bias: bool = False
    quantize: str = ''

    def setup(self):
        """Puts the adapter's leaves under the linear's own name."""
        if self.adapter is not None:
            self.experts = LowRankExperts(self.adapter, self.features, self.axes)
            nn.share_scope(self, self.experts)
            if self.adapter.magnitude:
                self.rescale = Magnitude(self.adapter, self.axes[1])
                nn.share_scope(self, self.rescale)

    @nn.compact
    def __call__(
        self,
        x_ND: jax.Array,
        leaves: Mapping[str, jax.Array],
        projected: compute.Projected | None,
        groups_NG: jax.Array | None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """(N, features). All but `x_ND` is for the adapter: see `LowRankExperts.update`."""
        kernel = self._kernel(x_ND.shape[-1])
        if isinstance(kernel, quantize_lib.Quantized):
            y_NF = quantize_lib.product(x_ND, kernel)
        else:
            y_NF = x_ND @ kernel.astype(x_ND.dtype)
        if projected is not None:
            y_NF += self.experts.update(projected, leaves, groups_NG, scale)
        outputs = 'features' if self.axes[1] == 'embed' else self.axes[1]
        y_NF = checkpoint_name(rules.constrain(y_NF, 'rows', outputs), self.name)
        if self.adapter is not None and self.adapter.magnitude:
            # In float32: bfloat16 would round a factor near 1 to a few values.
            kernel_DF = kernel.values() if isinstance(kernel, quantize_lib.Quantized) else kernel
            y_NF = (y_NF * self.rescale(kernel_DF, scale)[None]).astype(x_ND.dtype)
        if self.has_bias:
            zeros = nn.initializers.zeros_init()
            bias_F = parameter(self, 'bias', zeros, self.axes[1:], (self.features,), self.dtype)
            y_NF += bias_F.astype(y_NF.dtype)[None]
        return y_NF

    def _kernel(self, inputs: int) -> jax.Array | quantize_lib.Quantized:
        """(D, F), as numbers or as codes."""
        shape = (inputs, self.features)
        if not self.quantize:
            start = nn.initializers.lecun_normal()
            return parameter(self, 'kernel', start, self.axes, shape, self.dtype)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        of_codes, of_scale = quantize_lib.shapes(self.quantize, *shape)
        dtype, axes = quantize_lib.codes_dtype(self.quantize), ('tile', self.axes[1])
        codes = parameter(self, 'kernel', zeros, self.axes, of_codes, dtype)
        scale = parameter(self, 'kernel_scale', ones, axes, of_scale, 'float32')
        return quantize_lib.Quantized(codes, scale, self.quantize)


class Dropout(nn.Module):
    """Inverted dropout; the mask is named, as drawing it again costs more than keeping it."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array) -> jax.Array:
        """Return x with a share `rate` of its entries set to zero and the others scaled up."""
        keep = 1 - rate
        mask = jax.random.bernoulli(self.make_rng('dropout'), keep, x.shape)
        return jnp.where(checkpoint_name(mask, 'mask'), x / jnp.asarray(keep, x.dtype), 0)

"""Adapted linears, W x + scale · Δ(x): the frozen kernel, the adapter's update, and its dropout.

Dimension letters: N tokens, D inputs, F outputs, G groups of tokens (tasks).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.adapters import AdapterConfig, LowRankExperts, Magnitude
from malora_jax.adapters.low_rank import FirstProducts, first_products
from malora_jax.adapters.structures import DoRA
from malora_jax.distributed import rules
from malora_jax.models import quantize as quantize_lib
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context


def parameter(
    module: nn.Module,
    name: str,
    start: Callable[..., jax.Array],
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    """Create a parameter of the base, with logical names for its axes, and gather it for use."""
    boxed = nn.with_logical_partitioning(start, axes)
    value = cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))
    return rules.gather(value, axes)


class Outputs(NamedTuple):
    """The outputs of a linear: their number, the logical name of their axis, and the bias."""

    features: int
    axis: str
    has_bias: bool = False


class AdaptedLinear(nn.Module):
    """y = W x + scale · Δ(x), with the adapter's leaves next to the kernel.

    With a magnitude (DoRA), the sum is multiplied by a factor for each output. Dropout precedes the
    first factor of Δ as in every method; W sees the whole input.

    Attributes:
        features: F.
        axes: Logical axis names of the inputs and outputs.
        dtype: Dtype of the kernel.
        adapter: Settings of the adapter; None if the linear has none.
        has_bias: Whether there is a bias.
        quantize: Format of a quantized kernel; '' if it is not quantized.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    adapter: AdapterConfig | None
    has_bias: bool = False
    quantize: str = ''

    def setup(self):
        """Put the adapter's leaves under the linear's own name."""
        self.rescale: Magnitude | None = None
        if self.adapter is not None:
            self.experts = LowRankExperts(self.adapter, self.features, self.axes)
            nn.share_scope(self, self.experts)
            if isinstance(self.adapter.structure, DoRA):
                self.rescale = Magnitude(self.adapter, self.axes[1])
                nn.share_scope(self, self.rescale)

    @nn.compact
    def __call__(
        self,
        x_ND: jax.Array,
        leaves: Mapping[str, jax.Array],
        found: FirstProducts | None,
        groups_NG: jax.Array | None,
        scale: jax.Array | None,
    ) -> jax.Array:
        """Return (N, F). All arguments but `x_ND` are those of `LowRankExperts.update`."""
        kernel = self._kernel(x_ND.shape[-1])
        if isinstance(kernel, quantize_lib.Quantized):
            y_NF = quantize_lib.product(x_ND, kernel)
        else:
            y_NF = x_ND @ kernel.astype(x_ND.dtype)
        if found is not None:
            y_NF += self.experts.update(found, leaves, groups_NG, scale)
        outputs = 'features' if self.axes[1] == 'embed' else self.axes[1]
        y_NF = checkpoint_name(rules.constrain(y_NF, 'rows', outputs), self.name)
        if self.rescale is not None:
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


class AdaptedPart(nn.Module):
    """Base of attention and MLP, the parts of a layer that have adapted linears."""

    config: ModelConfig
    adapter: AdapterConfig | None

    def linears(
        self, x_ND: jax.Array, inputs: str, context: Context, **outputs: Outputs
    ) -> list[jax.Array]:
        """Apply all linears that have one input, and return their outputs in order.

        Their adapters share the dropout mask and compute their first products together.

        Args:
            x_ND: The input.
            inputs: Logical name of its features.
            context: Context of the layer.
            **outputs: Outputs of each linear, by its name.
        """
        linears = [self._linear(name, inputs, each) for name, each in outputs.items()]
        adapted = [linear for linear in linears if linear.adapter is not None]
        leaves = {linear.name: linear.experts.leaves(x_ND.shape[-1]) for linear in adapted}
        found: dict[str | None, FirstProducts] = {}
        if self.adapter is not None and adapted:
            dropped_ND = x_ND
            if context.train and self.adapter.dropout > 0:
                rate = self.adapter.dropout if context.dropout is None else context.dropout
                dropped_ND = Dropout()(x_ND, rate)
            each = first_products(self.adapter, x_ND, dropped_ND, list(leaves.values()))
            found = dict(zip(leaves, each, strict=True))
        return [
            linear(
                *(x_ND, leaves.get(linear.name, {}), found.get(linear.name)),
                *(context.groups, context.scale),
            )
            for linear in linears
        ]

    def _linear(self, name: str, inputs: str, outputs: Outputs) -> AdaptedLinear:
        is_adapted = self.adapter is not None and name in self.adapter.targets
        return AdaptedLinear(
            outputs.features,
            (inputs, outputs.axis),
            self.config.dtype,
            self.adapter if is_adapted else None,
            outputs.has_bias,
            self.config.quantize,
            name=name,
        )

"""Adapted linears W x + scale · Δ(x): frozen kernel, low-rank update by experts, and dropout.

Dimension letters: N tokens, D inputs, F outputs, G groups of tokens (tasks).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.adapters import AdapterConfig, LowRankExperts, Magnitude
from malora_jax.adapters.bank import GROUP_PREFIX, AdapterBank, BankedExperts, Output, Update
from malora_jax.adapters.dropout import drop_input
from malora_jax.adapters.low_rank import AfterDropout, ProjectedInput, project_input
from malora_jax.adapters.structures import DoRA
from malora_jax.distributed import sharding
from malora_jax.models import base_matmul
from malora_jax.models import quantize as quantize_lib
from malora_jax.models.config import ModelConfig
from malora_jax.models.context import Context


def parameter(
    module: nn.Module,
    name: str,
    initializer: Callable[..., jax.Array],
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    """Create a parameter of the base model, sharded by the logical names of its axes.

    Args:
        module: Module that owns the parameter.
        name: Name of the parameter.
        initializer: Flax initializer of the value.
        axes: Logical axis names, keys of `sharding.LOGICAL_AXIS_RULES`.
        shape: Shape of the whole parameter.
        dtype: Dtype of the parameter.

    Returns:
        The parameter, gathered over the mesh axis `fsdp`: see `sharding.gather`.
    """
    boxed = nn.with_logical_partitioning(initializer, axes)
    value = cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))
    return sharding.gather(value, axes)


class LinearSpec(NamedTuple):
    """Settings of one linear, for `AdaptedSublayer.apply_linears`, which creates the linear.

    Attributes:
        features: Number of outputs.
        axis: Logical name of the output axis.
        has_bias: Whether there is a bias.
    """

    features: int
    axis: str
    has_bias: bool = False


class AdaptedLinear(nn.Module):
    """Linear with an adapter: y = W x + scale · Δ(x).

    W is the frozen kernel, and Δ(x) is the low-rank update by the experts. With DoRA, y is also
    multiplied by a vector (F,), which has one factor per output and is the same for all tokens. A
    bias is added last. Dropout applies to the input of the down-projection in Δ, but not to the
    input of W. The adapter's parameters have the same module path as the kernel, but are in other
    collections.

    Attributes:
        features: Number F of outputs.
        axes: Logical axis names of the inputs and outputs.
        dtype: Dtype of the kernel.
        adapter: Settings of the adapter; None if the linear has none.
        has_bias: Whether there is a bias.
        quantize: Quantization format of the kernel; '' if it is not quantized.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    adapter: AdapterConfig | None
    has_bias: bool = False
    quantize: str = ''

    def setup(self):
        """Create the adapter in the linear's own scope.

        The paths of the adapter's leaves thus contain no extra module name.
        """
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
        projected: ProjectedInput | None,
        groups_NG: jax.Array | None,
        scale: jax.Array | None,
        num_experts: jax.Array | None,
        train: bool,
        banked: Update | None = None,
    ) -> jax.Array:
        """Apply the linear and its adapter.

        Args:
            x_ND: Input of the linear, without dropout.
            leaves: Parameters of the adapter, by name; empty without an adapter.
            projected: Down-projected input and router logits of the adapter; None without an
                adapter.
            groups_NG: float32 one-hot group (task) of each token, to record routing statistics.
            scale: () float32 factor of the update, which replaces `AdapterConfig.scale`; None keeps
                the value of the config.
            num_experts: () int32 number of experts of this layer; None for all.
            train: Whether dropout is on.
            banked: Update by the adapters of a bank.

        Returns:
            (N, F) in the dtype of x.
        """
        kernel = self._kernel(x_ND.shape[-1])
        if isinstance(kernel, quantize_lib.QuantizedKernel):
            y_NF = quantize_lib.quantized_matmul(x_ND, kernel)
        else:
            y_NF = base_matmul.matmul(x_ND, kernel.astype(x_ND.dtype))
        if projected is not None:
            y_NF += self.experts.update(projected, leaves, groups_NG, scale, num_experts, train)
        if banked is not None:
            y_NF += banked.added
        output_axis = 'features' if self.axes[1] == 'embed' else self.axes[1]
        y_NF = checkpoint_name(sharding.constrain(y_NF, 'rows', output_axis), self.name)
        if self.rescale is not None:
            # The factors are float32, since bfloat16 has only a few values near 1.
            kernel_DF = (
                kernel.dequantize() if isinstance(kernel, quantize_lib.QuantizedKernel) else kernel
            )
            y_NF = (y_NF * self.rescale(kernel_DF, scale)[None]).astype(x_ND.dtype)
        if banked is not None and banked.factor is not None:
            y_NF = (y_NF * banked.factor).astype(x_ND.dtype)
        if self.has_bias:
            zeros = nn.initializers.zeros_init()
            bias_F = parameter(self, 'bias', zeros, self.axes[1:], (self.features,), self.dtype)
            y_NF += bias_F.astype(y_NF.dtype)[None]
        return y_NF

    def _kernel(self, inputs: int) -> jax.Array | quantize_lib.QuantizedKernel:
        """Create the kernel (D, F), as an array or quantized."""
        shape = (inputs, self.features)
        if not self.quantize:
            initializer = nn.initializers.lecun_normal()
            return parameter(self, 'kernel', initializer, self.axes, shape, self.dtype)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        codes_shape, scale_shape = quantize_lib.quantized_shapes(self.quantize, *shape)
        dtype, axes = quantize_lib.codes_dtype(self.quantize), ('tile', self.axes[1])
        codes = parameter(self, 'kernel', zeros, self.axes, codes_shape, dtype)
        scale = parameter(self, 'kernel_scale', ones, axes, scale_shape, 'float32')
        return quantize_lib.QuantizedKernel(codes, scale, self.quantize)


class Dropout(nn.Module):
    """Inverted dropout, with masks from the PRNG stream `dropout`.

    Attributes:
        masks: One of `MASKS`: one mask, or one for each expert.
        num_experts: Number of experts.
    """

    masks: str = 'shared'
    num_experts: int = 1

    @nn.compact
    def __call__(self, x_ND: jax.Array, rate: float | jax.Array) -> AfterDropout:
        """Set each entry to zero with probability `rate`, and scale up the others."""
        return drop_input(self.make_rng('dropout'), x_ND, rate, self.masks, self.num_experts)


class AdaptedSublayer(nn.Module):
    """Base class of `Attention` and `MLP`, the parts of a layer that contain adapted linears.

    Attributes:
        config: Configuration of the base model.
        adapter: Settings of the adapters; None for the base model alone, or with a bank.
        bank: Several adapters for text generation; None without a bank.
    """

    config: ModelConfig
    adapter: AdapterConfig | None
    bank: AdapterBank | None = None

    def apply_linears(
        self, x_ND: jax.Array, input_axis: str, context: Context, **specs: LinearSpec
    ) -> list[jax.Array]:
        """Apply all linears that share an input, such as q, k and v.

        Their adapters share the dropout mask of the input, or that of each expert, and their
        down-projections are computed together.

        Args:
            x_ND: Input of the linears.
            input_axis: Logical name of the input's feature axis.
            context: Metadata of the tokens.
            **specs: Settings of each linear, by the linear's name.

        Returns:
            The output (N, F) of each linear, in the order of `specs`.
        """
        linears = [self._linear(name, input_axis, each) for name, each in specs.items()]
        adapted = [linear for linear in linears if linear.adapter is not None]
        leaves = {linear.name: linear.experts.leaves(x_ND.shape[-1]) for linear in adapted}
        projected: dict[str | None, ProjectedInput] = {}
        banked: dict[str, Update] = {}
        if self.bank is not None:
            banked = self._apply_bank(self.bank, x_ND, input_axis, context, specs)
        elif self.adapter is not None and adapted:
            after_dropout: AfterDropout = x_ND
            if context.train and self.adapter.dropout > 0:
                rate = self.adapter.dropout if context.dropout is None else context.dropout
                masks = Dropout(self.adapter.dropout_masks, self.adapter.num_experts)
                after_dropout = masks(x_ND, rate)
            each = project_input(self.adapter, x_ND, after_dropout, list(leaves.values()))
            projected = dict(zip(leaves, each, strict=True))
        return [
            linear(
                *(x_ND, leaves.get(linear.name, {}), projected.get(linear.name)),
                *(context.groups, context.scale, context.num_experts),
                context.train,
                banked.get(linear.name or ''),
            )
            for linear in linears
        ]

    def _apply_bank(
        self,
        bank: AdapterBank,
        x_ND: jax.Array,
        input_axis: str,
        context: Context,
        specs: Mapping[str, LinearSpec],
    ) -> dict[str, Update]:
        names = [name for name in specs if name in bank.targets]
        if not names:
            return {}
        outputs = tuple(Output(name, specs[name].features, specs[name].axis) for name in names)
        name = GROUP_PREFIX + '_'.join(names)
        experts = BankedExperts(bank, input_axis, outputs, self.config.dtype, name=name)
        return experts(x_ND, cast(jax.Array, context.adapter))

    def _linear(self, name: str, input_axis: str, spec: LinearSpec) -> AdaptedLinear:
        is_adapted = self.adapter is not None and name in self.adapter.targets
        return AdaptedLinear(
            spec.features,
            (input_axis, spec.axis),
            self.config.dtype,
            self.adapter if is_adapted else None,
            spec.has_bias,
            self.config.quantize,
            name=name,
        )

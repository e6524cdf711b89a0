"""DoRA's magnitude: trained lengths for the columns of an adapted weight."""

from typing import cast

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from malora_jax.adapters import products
from malora_jax.adapters.config import AdapterConfig


class Magnitude(nn.Module):
    """The factor m / ‖W + scale · B A‖_c of each output (DoRA, Liu et al. 2024, eq. (5)).

    Leaf `magnitude` (F,), float32, in `adapter` or `adapter_frozen`; it starts at the lengths of
    the kernel's columns, where the factor is 1. Reads `down` and `up` of the `LowRankExperts`
    whose scope it shares (`nn.share_scope`), which must have been called before.

    The lengths carry no gradient (section 4.3 of the DoRA paper: treating them as constants saves
    memory and costs no accuracy).

    Attributes:
        config: Settings of the adapter.
        axis: Logical axis name of the linear's outputs.
    """

    config: AdapterConfig
    axis: str

    @nn.compact
    def __call__(self, kernel_DF: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Return the factors, (F,) float32.

        Args:
            kernel_DF: W.
            scale: Factor of B A, () float32; that of the config by default.
        """
        down_DR, up_RF = (self._factor(name)[0] for name in self.config.structure.factors)
        lengths_F = jax.lax.stop_gradient(
            products.column_lengths(
                kernel_DF, down_DR, up_RF, self.config.scale if scale is None else scale
            )
        )
        # Saved for the backward pass: they cost a product of the kernel's size.
        lengths_F = checkpoint_name(lengths_F, 'lengths')
        (name,) = self.config.structure.extra
        boxed = nn.with_logical_partitioning(lambda: lengths_F, (self.axis,))
        leaf = self.variable(self._collection(name), name, boxed)
        return cast(jax.Array, leaf.value) / lengths_F

    def _factor(self, name: str) -> jax.Array:
        return cast(jax.Array, nn.unbox(self.get_variable(self._collection(name), name)))

    def _collection(self, name: str) -> str:
        return 'adapter_frozen' if name in self.config.frozen else 'adapter'

"""DoRA's magnitude vector: trained lengths of the columns of an adapted weight."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from malora_jax.adapters import products
from malora_jax.adapters.base_structure import Leaves
from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.structures import DoRA


class Magnitude(nn.Module):
    """Multiplier m / ‖W + scale · B A‖_c of each output (DoRA, Liu et al. 2024, eq. (5)).

    W is the frozen kernel, and B A the product of the low-rank factors `up` and `down`. A column
    holds the weights of one output, and ‖·‖_c is the Euclidean norm of each column. The parameter
    m, (F,) float32, has the name `magnitude` in collection `adapter` or `adapter_frozen`. It starts
    as the column norms of the kernel, so all multipliers start at 1. The module reads `down` and
    `up` of a `LowRankExperts` module in the same scope, which must be called first:

        def setup(self):
            config = method('dora')
            self.experts = LowRankExperts(config, features=4096)
            self.magnitude = Magnitude(config, 'mlp')
            nn.share_scope(self, self.experts)
            nn.share_scope(self, self.magnitude)

        def __call__(self, x_ND, kernel_DF):
            y_NF = x_ND @ kernel_DF + self.experts(x_ND)
            return y_NF * self.magnitude(kernel_DF)

    m has a gradient, but the norm in the denominator has none. According to section 4.3 of the DoRA
    paper, treating this norm as a constant saves memory and costs no accuracy.

    Attributes:
        config: Adapter configuration.
        axis: Logical axis name of the outputs of the linear layer.
    """

    config: AdapterConfig
    axis: str

    @nn.compact
    def __call__(self, kernel_DF: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Return the multiplier of each output, (F,) float32.

        Args:
            kernel_DF: (D, F), frozen kernel W of the linear layer, dequantized.
            scale: () float32, scale of B A; `config.scale` by default.
        """
        down_DR, up_RF = (self._factor(name)[0] for name in self.config.structure.factors)
        norms_F = jax.lax.stop_gradient(
            products.column_norms(
                kernel_DF, down_DR, up_RF, self.config.scale if scale is None else scale
            )
        )
        # Saved under this name, because recomputing the lengths in the backward pass would cost a
        # matrix product with the whole kernel.
        norms_F = checkpoint_name(norms_F, 'lengths')
        (name,) = self.config.structure.kernel_dependent
        boxed = nn.with_logical_partitioning(lambda: norms_F, (self.axis,))
        leaf = self.variable(self.config.collection(name), name, boxed)
        return cast(jax.Array, leaf.value) / norms_F

    def _factor(self, name: str) -> jax.Array:
        return cast(jax.Array, nn.unbox(self.get_variable(self.config.collection(name), name)))


def multipliers(config: AdapterConfig | None, kernel_LDF: jax.Array, leaves: Leaves) -> jax.Array:
    """Return the multiplier of each output of one linear layer in all layers, for generation.

    Args:
        config: Adapter configuration; None for the base model alone.
        kernel_LDF: (L, D, F), frozen kernel, dequantized.
        leaves: Parameters of the adapter, (L, ...), by name; empty without an adapter.

    Returns:
        (L, F) float32, ones unless the adapter is a DoRA.
    """
    L, _, F = kernel_LDF.shape
    if config is None or not isinstance(config.structure, DoRA) or not leaves:
        return jnp.ones((L, F))
    down_LDR, up_LRF = (leaves[name][:, 0] for name in config.structure.factors)
    norms = jax.vmap(products.column_norms, (0, 0, 0, None))
    (name,) = config.structure.kernel_dependent
    return leaves[name] / norms(kernel_LDF, down_LDR, up_LRF, config.scale)

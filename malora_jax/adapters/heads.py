"""M-LoRA: heads that are added up without a router, start at random, and have dropout masks.

Dimension letters: N tokens, D inputs and F outputs of a linear layer, E heads, R rank, P = E · R
stacked ranks, L layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.adapters import products
from malora_jax.adapters.base_structure import Axis, Leaves, Structure, require
from malora_jax.adapters.dropout import dropout

# γ of the initialization, the default of the authors' code.
_GAMMA = 64.0


@dataclasses.dataclass(frozen=True)
class MultiHeadLoRA(Structure):
    """M-LoRA (Liu et al. 2025, arXiv 2508.05078): heads that share A and are added up.

    The update is Σ_i B_i m_i(A x) - (Σ_i B_i⁰) A⁰ x. The experts are the heads B_i. There is no
    router. In training, the dropout mask m_i of each head sets entries of A x to zero. Without
    masks, the update is that of one LoRA with the up-projection Σ_i B_i.

    A⁰ and Σ_i B_i⁰ are the random initial values. They are kept in the frozen parameters
    `residual_down` and `residual_up`, so that the update is zero at the start.

    Attributes:
        head_dropout: Rate of the masks.
    """

    head_dropout: float = 0.0

    factors = ('shared_down', 'up')
    expert_input_factors = ()
    frozen = ('residual_down', 'residual_up')
    first_factor_axis = 'shared_rank'
    is_routed = False

    def __post_init__(self):
        super().__post_init__()
        is_rate = 0 <= self.head_dropout < 1
        require(is_rate, 'head_dropout', self.head_dropout, 'at least 0 and below 1')

    @property
    def subspace_rank(self) -> int:
        """Number of dimensions of A x, the activations that all heads share: the rank R."""
        return self.rank

    @property
    def is_mergeable(self) -> bool:
        """True: without masks, the heads and the residual are one matrix for all tokens."""
        return True

    @property
    def summed_factors(self) -> tuple[str, ...]:
        """Names of the factors that are added up before the product: the heads without masks."""
        return () if self.has_masks else ('up',)

    @property
    def has_masks(self) -> bool:
        """True if the heads have dropout masks in training."""
        return self.head_dropout > 0

    @property
    def num_residual_experts(self) -> int:
        """Number of experts of the residual: one, because it adds up the initial heads."""
        return 1

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A, the heads B_i, A⁰ and Σ_i B_i⁰, by name."""
        R, shared = self.rank_axis, Axis('shared_rank', self.rank)
        return {
            'shared_down': (inputs, shared),
            'up': (self.expert_axis, R, outputs),
            'residual_down': (inputs, shared),
            'residual_up': (R, outputs),
        }

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Draw A and B_i from normal distributions, and set the residual to the same values.

        The standard deviation of A is F^(1/4) / √(γ D), and that of B_i is F^(1/4) / √(γ F).
        """
        down_key, up_key = jax.random.split(key)
        root = outputs**0.25 / math.sqrt(_GAMMA)
        down_DR = jax.random.normal(down_key, (inputs, self.rank)) * (root / inputs**0.5)
        up_ERF = jax.random.normal(up_key, (self.num_experts, self.rank, outputs))
        up_ERF = up_ERF * (root / outputs**0.5)
        return {
            'shared_down': down_DR,
            'up': up_ERF,
            'residual_down': down_DR,
            'residual_up': up_ERF.sum(axis=0),
        }

    def update(
        self, projected_NQ: jax.Array, leaves: Leaves, gates_NE: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        """Return scale · (Σ_i B_i) A x, (N, F), without masks and without the residual.

        The heads are added up before the product, as in the residual, so that rounding errors are
        the same in both and the update is exactly zero at the start.
        """
        up_RF = leaves['up'].sum(axis=0).astype(projected_NQ.dtype)
        return (scale * projected_NQ) @ up_RF

    def masked_update(
        self,
        key: jax.Array,
        projected_NQ: jax.Array,
        leaves: Leaves,
        scale: jax.Array,
        gates_NE: jax.Array | None = None,
    ) -> jax.Array:
        """Return scale · Σ_i B_i m_i(A x), (N, F), without the residual.

        A mask does not depend on the rank: with a lower rank, it has the first columns of the same
        mask. Runs of different ranks can therefore be trained together.

        Args:
            key: Random key of the masks m_i.
            projected_NQ: (N, R), A x.
            leaves: Parameters by name.
            scale: Scale of the update, (), in the dtype of the activations.
            gates_NE: None, because the heads have no gates.
        """
        keys = jax.random.split(key, self.num_experts)
        masked = [dropout(each, projected_NQ, self.head_dropout) for each in keys]
        return products.sum_of_experts(scale * jnp.concatenate(masked, axis=1), leaves['up'])

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the shared down-projection A and the up-projection B_i of each head."""
        return leaves['shared_down'][:, None], leaves['up']

    def residual(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return A⁰ and -Σ_i B_i⁰."""
        down, up = leaves['residual_down'], leaves['residual_up']
        return down[..., None, :, :], -up[..., None, :, :]

"""Structure in which each rank of one LoRA is an expert.

Dimension letters: N tokens, D inputs, F outputs, E experts, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from malora_jax.adapters import products
from malora_jax.adapters.base_structure import Axis, Leaves, Structure, require


@dataclasses.dataclass(frozen=True)
class RankExperts(Structure):
    """One LoRA of rank E, whose ranks are experts (SMoRA and FlyLoRA).

    The update is Σ_t G_t b_t a_tᵀ x. Expert t has the gate G_t, row a_tᵀ of the down-projection A,
    and column b_t of the up-projection B.
    """

    factors = ('shared_down', 'shared_up')
    expert_input_factors = ()
    # As with LoRA, the rank may exceed the number of inputs.
    is_subspace_of_inputs = False

    def __post_init__(self):
        super().__post_init__()
        require(self.rank == 1, 'rank', self.rank, "1 if subspace is 'ranks'")

    @property
    def subspace_rank(self) -> int:
        """Number of dimensions of A x: the number of experts, E."""
        return self.num_experts

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A and B, by name."""
        return {
            'shared_down': (inputs, self.expert_axis),
            'shared_up': (self.expert_axis, outputs),
        }

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return B h, (N, F), for the gated activations h of all ranks."""
        return products.sum_of_experts(hidden_NP, leaves['shared_up'][:, None])

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the row of A and the column of B of each expert."""
        down_LDE, up_LEF = leaves['shared_down'], leaves['shared_up']
        return down_LDE.swapaxes(1, 2)[..., None], up_LEF[:, :, None]

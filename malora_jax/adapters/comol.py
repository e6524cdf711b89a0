"""CoMoL: experts that share both projections and differ in their cores.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank, S = R inputs of a core, P =
E · R stacked ranks, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.adapters.base_structure import Axis, Leaves, require
from malora_jax.adapters.dropout import dropout
from malora_jax.adapters.structures import HydraLoRA, project_up_shared


@dataclasses.dataclass(frozen=True)
class CoMoL(HydraLoRA):
    """Experts that share both projections, and differ in their cores.

    The update is B Σ_t G_t C_t A x. Expert t has the gate G_t and the core C_t. With several
    experts, this is CoMoL (arXiv 2603.00573). With a single expert, this is MoSLoRA (Wu et al.
    2024): C mixes the subspaces of A and B.

    Attributes:
        core_dropout: Dropout rate, in training only, of the merged core Σ_t G_t C_t of each token
            and of its product with A x, as in the authors' code; 0 in the paper.
    """

    core_dropout: float = 0.0

    factors = ('shared_down', 'core', 'shared_up')
    expert_input_factors = ('core',)

    def __post_init__(self):
        super().__post_init__()
        is_rate = 0 <= self.core_dropout < 1
        require(is_rate, 'core_dropout', self.core_dropout, 'at least 0 and below 1')
        require(
            self.core_dropout == 0 or self.num_experts > 1,
            'core_dropout',
            self.core_dropout,
            '0.0 for a single expert',
        )

    @property
    def is_mergeable(self) -> bool:
        """True with a single expert, which every token uses."""
        return self.num_experts == 1

    @property
    def has_masks(self) -> bool:
        """True if the merged core has dropout masks in training."""
        return self.core_dropout > 0

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the shared A, the experts' cores C_t and the shared B, by name."""
        E, R, shared = self.expert_axis, self.rank_axis, Axis('shared_rank', self.rank)
        return {
            'shared_down': (inputs, shared),
            'core': (E, R, shared),
            'shared_up': (shared, outputs),
        }

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the shared A, whose first rows are the trained LoRA's, and cores that keep A x."""
        R = down_DR.shape[-1]
        core_ERS = fresh['core'].at[:, :, :R].set(jnp.eye(self.rank, R))
        return super().factors_from_lora(fresh, down_DR, beta) | {'core': core_ERS}

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return B Σ_t C_t h_t, (N, F), for the gated activations h_t = G_t A x of each expert t.

        Gating A x, instead of its products with the cores, makes the sum over the experts part of
        one matrix product.
        """
        return project_up_shared(hidden_NP, leaves['core'], leaves)

    def masked_update(
        self,
        key: jax.Array,
        projected_NQ: jax.Array,
        leaves: Leaves,
        scale: jax.Array,
        gates_NE: jax.Array | None = None,
    ) -> jax.Array:
        """Return scale · B m'(m(Σ_t G_t C_t) A x), (N, F), with dropout masks m and m' per token.

        Each token needs a core of its own, of S · R numbers. Row s of its mask does not depend on
        the rank, except for the number of entries. Runs of different ranks can therefore be
        trained together.
        """
        assert gates_NE is not None
        core_ESR = leaves['core'].astype(projected_NQ.dtype)
        E, S, R = core_ESR.shape
        core_NSR = (gates_NE.astype(core_ESR.dtype) @ core_ESR.reshape(E, -1)).reshape(-1, S, R)
        core_key, product_key = jax.random.split(key)
        keys_S = jax.vmap(jax.random.fold_in, (None, 0))(core_key, jnp.arange(S))
        mask = jax.vmap(dropout, in_axes=(0, 1, None), out_axes=1)
        hidden_NR = jnp.einsum(
            'NS,NSR->NR', projected_NQ, mask(keys_S, core_NSR, self.core_dropout)
        )
        hidden_NR = scale * dropout(product_key, hidden_NR, self.core_dropout)
        return hidden_NR @ leaves['shared_up'].astype(hidden_NR.dtype)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the shared down-projection A and the up-projection B C_t of each expert t."""
        return leaves['shared_down'][:, None], leaves['core'] @ leaves['shared_up'][:, None]

"""Structure of D²MoRA: one router weights the down-projections, another the up-projections.

Dimension letters: N tokens, D inputs, F outputs, E down-projections, U up-projections, R rank, P =
E · R stacked ranks of the down-projections, V = U · R those of the up-projections.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.adapters import initializers, products
from malora_jax.adapters.base_structure import Axis, Leaves, Structure, require


@dataclasses.dataclass(frozen=True)
class D2MoRA(Structure):
    """D²MoRA (Zuo et al. 2026): every down-projection is combined with every up-projection.

    The update is Σ_u H_u(z) B_u z with z = Σ_t G_t(x) A_t x. The first router computes the gate G_t
    of the down-projection A_t, from the input x. The second router computes the gate H_u of the
    up-projection B_u from z: H(z) is the softmax of W z, W in parameter `up_router`.

    The experts of this structure, and of the first router, are the down-projections.

    Attributes:
        num_up_experts: Number of up-projections, U.
    """

    num_up_experts: int

    factors = ('down', 'up')
    expert_input_factors = ('down',)

    def __post_init__(self):
        super().__post_init__()
        require(self.num_up_experts >= 2, 'num_up_experts', self.num_up_experts, '0 or at least 2')
        require(
            self.num_experts >= 2,
            'num_experts',
            self.num_experts,
            'at least 2 if num_up_experts > 0',
        )

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the A_t, the second router's weight and the B_u, by name."""
        E, R, U = self.expert_axis, self.rank_axis, Axis('up_expert', self.num_up_experts)
        return {'down': (E, inputs, R), 'up_router': (R, U), 'up': (U, R, outputs)}

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize A_t and the second router Kaiming-uniform, and B_u with zeros."""
        # The first key is that of the down-projections.
        _, router_key = jax.random.split(key)
        shape = (self.rank, self.num_up_experts)
        return super().initialize(key, inputs, outputs, beta) | {
            'up_router': initializers.kaiming_uniform(router_key, shape)
        }

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the A_t. The first rows of each A_t are the trained LoRA's A."""
        return {'down': fresh['down'].at[..., : down_DR.shape[-1]].set(down_DR)}

    def update(
        self, projected_NQ: jax.Array, leaves: Leaves, gates_NE: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        """Return the update scale · Σ_u H_u(z) B_u z, (N, F), with z = Σ_t G_t A_t x.

        Args:
            projected_NQ: (N, P), A_t x of all down-projections t.
            leaves: Parameters by name.
            gates_NE: (N, E), gates G_t of the down-projections.
            scale: Scale of the update, (), in the dtype of the activations.
        """
        assert gates_NE is not None
        gated_NP = products.gate(projected_NQ, gates_NE)
        hidden_NV = self.route_up(gated_NP, leaves['up_router'])
        return self.output(scale * hidden_NV, leaves)

    def route_up(self, gated_NP: jax.Array, up_router_RU: jax.Array) -> jax.Array:
        """Sum the down-projected inputs, and gate the sum z for each up-projection.

        Args:
            gated_NP: (N, P), down-projected inputs times their gates, G_t A_t x.
            up_router_RU: (R, U) float32, weight of the second router.

        Returns:
            (N, V) in the dtype of the activations, H_u(z) z for all up-projections u.
        """
        E, R, U = self.num_experts, self.rank, self.num_up_experts
        # A product with a constant matrix sums over experts without a change of layout.
        sum_ERR = jnp.broadcast_to(jnp.eye(R), (E, R, R))
        z_NR = products.save_for_backward(products.sum_of_experts(gated_NP, sum_ERR), 'rank')
        logits_NU = products.save_for_backward(
            jnp.matmul(z_NR.astype(jnp.float32), up_router_RU, precision=jax.lax.Precision.HIGHEST),
            'up_expert',
            'router',
        )
        return products.gate(jnp.tile(z_NR, (1, U)), jax.nn.softmax(logits_NU, axis=-1))

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projections A_t and the up-projections B_u, in different numbers."""
        return leaves['down'], leaves['up']

"""Structures: the low-rank factors of the experts, which of them are shared, and their products.

Each structure is a class. It computes Σ_t G_t(x) E_t x, a sum over the experts t, where G_t(x) is
the gate of expert t and E_t the product of its factors:

| class                  | expert E_t  | parameters, input to output        | methods           |
|------------------------|-------------|------------------------------------|-------------------|
| `IndependentExperts`   | B_t A_t     | `down`, `up`                       | LoRA, MoLoRA      |
| `DoRA`                 | B A         | `down`, `up`, `magnitude`          | DoRA              |
| `SharedDown`           | B_t P_t S_A | `shared_down`, `core`, `up`        | MALoRA            |
| `IndependentSubspaces` | B_t P_t S_t | `down`, `core`, `up`               | "w/o shared S_A"  |
| `SharedUp`             | S_B P_t A_t | `down`, `core`, `shared_up`        | "decomposing B_t" |
| `HydraLoRA`            | B_t A       | `shared_down`, `up`                | HydraLoRA         |
| `ALoRA`                | B A_t       | `down`, `shared_up`                | ALoRA             |
| `comol.CoMoL`          | B C_t A     | `shared_down`, `core`, `shared_up` | CoMoL, MoSLoRA    |

`d2mora.D2MoRA` has another form: a second router weights the up-projections. In
`rank_experts.RankExperts`, each rank of one LoRA is an expert. `goat.GOAT` has the experts of
MoLoRA, and a frozen residual. `heads.MultiHeadLoRA` has the factors of HydraLoRA, but no router.

Quoted methods are ablations in Table 3 of the MALoRA paper. Equation numbers refer to this paper.
Arrays hold the transposes of the paper's matrices: the down-projection A_t is stored as (D, R).

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, S rank of a
shared subspace, I = S / E, P = E · R stacked ranks, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from malora_jax.adapters import initializers, products
from malora_jax.adapters.base_structure import Axis, Leaves, Structure, SubspaceStructure, require


def _copy_lora(fresh: Leaves, name: str, down_DR: jax.Array) -> dict[str, jax.Array]:
    """Return a factor that begins with the rows of a trained LoRA's A, by its name."""
    return {name: fresh[name].at[..., : down_DR.shape[-1]].set(down_DR)}


def project_up_shared(hidden_NP: jax.Array, core_ERS: jax.Array, leaves: Leaves) -> jax.Array:
    """Multiply with the core of each expert, sum over experts, and apply the shared factor.

    Args:
        hidden_NP: (N, P), gated activations of all experts.
        core_ERS: (E, R, S), core of each expert.
        leaves: Parameters by name.

    Returns:
        (N, F) in the dtype of the activations.
    """
    shared_NS = products.sum_of_experts(hidden_NP, core_ERS)
    return shared_NS @ leaves['shared_up'].astype(hidden_NP.dtype)


@dataclasses.dataclass(frozen=True)
class IndependentExperts(Structure):
    """LoRA; or, with several experts, a mixture of independent LoRAs (MoLoRA).

    The update is Σ_t G_t B_t A_t x, where expert t has the gate G_t, the down-projection A_t and
    the up-projection B_t.
    """

    factors = ('down', 'up')
    expert_input_factors = ('down',)
    dispatch_factors = ('down', 'up')

    @property
    def is_mergeable(self) -> bool:
        """True with a single expert, which every token uses."""
        return self.num_experts == 1

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the experts' down-projections A_t and up-projections B_t, by name."""
        E, R = self.expert_axis, self.rank_axis
        return {'down': (E, inputs, R), 'up': (E, R, outputs)}

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the experts' A_t. The first rows of each A_t are the trained LoRA's A."""
        return _copy_lora(fresh, 'down', down_DR)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection A_t and the up-projection B_t of each expert t."""
        return leaves['down'], leaves['up']


@dataclasses.dataclass(frozen=True)
class DoRA(IndependentExperts):
    """DoRA: LoRA with a trained length for each column of W + scale · B A (Liu et al. 2024)."""

    num_experts: int = dataclasses.field(default=1, init=False)

    kernel_dependent = ('magnitude',)

    def merged_kernel(self, kernel_DF: jax.Array, leaves: Leaves, scale: float) -> jax.Array:
        """Return the merged kernel m (W + scale · B A) / ‖W + scale · B A‖, (D, F) float32."""
        down_DR, up_RF = leaves['down'][0], leaves['up'][0]
        norms_F = products.column_norms(kernel_DF, down_DR, up_RF, scale)
        return (
            super().merged_kernel(kernel_DF, leaves, scale) * (leaves['magnitude'] / norms_F)[None]
        )

    def column_norm_flops(self, inputs: int, outputs: int) -> int:
        """Return the number of floating-point operations of `products.column_norms`.

        Args:
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
        """
        # A W and ‖w‖², then A Aᵀ and its product with B.
        return 2 * (inputs * outputs * (self.rank + 1) + self.rank**2 * (inputs + outputs))


@dataclasses.dataclass(frozen=True)
class SharedDown(SubspaceStructure):
    """MALoRA: all experts share a down-projection S_A.

    The update is Σ_t G_t B_t P_t S_A x. Expert t has the gate G_t and two factors of its own: the
    core P_t, in parameter `core`, and the up-projection B_t.
    """

    factors = ('shared_down', 'core', 'up')
    expert_input_factors = ('core',)
    dispatch_factors = ('core', 'up')
    first_factor_axis = 'shared_rank'

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the shared S_A, the cores P_t and the up-projections B_t, by name."""
        E, R, S = self.expert_axis, self.rank_axis, Axis('shared_rank', self.shared_rank)
        return {'shared_down': (inputs, S), 'core': (E, S, R), 'up': (E, R, outputs)}

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize S_A and P_t by eq. (8) to (10), and B_t with zeros."""
        E, R = self.num_experts, self.rank
        key, _ = jax.random.split(key)
        shared_down_DS, core_ESR = initializers.shared_subspace(
            key, inputs=inputs, num_experts=E, rank=R, shared_rank=self.shared_rank, beta=beta
        )
        return {'shared_down': shared_down_DS, 'core': core_ESR, 'up': jnp.zeros((E, R, outputs))}

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return S_A and cores P_t, such that P_t S_A of each expert begins with the rows of A.

        A is the down-projection of the trained LoRA. The new S_A is β times an orthonormal basis:
        its first rows span the rows of A, and the others come from the initial S_A.
        """
        R, S = down_DR.shape[-1], self.shared_rank
        both_DQ = jnp.concatenate([down_DR, fresh['shared_down']], axis=1)
        basis_DQ, triangle_QQ = jnp.linalg.qr(both_DQ)
        core_ESR = fresh['core'].at[:, :, :R].set(0)
        return {
            'shared_down': beta * basis_DQ[:, :S],
            'core': core_ESR.at[:, :R, :R].set(triangle_QQ[:R, :R] / beta),
        }

    def hidden(self, projected_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return the activations P_t S_A x of all experts t before gating, (N, P)."""
        core_SP = products.stack_ranks(leaves['core']).astype(projected_NQ.dtype)
        return products.save_for_backward(projected_NQ @ core_SP)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection P_t S_A and the up-projection B_t of each expert t."""
        return leaves['shared_down'][:, None] @ leaves['core'], leaves['up']


@dataclasses.dataclass(frozen=True)
class IndependentSubspaces(SubspaceStructure):
    """MALoRA with a separate subspace for each expert, the ablation "w/o shared S_A" of Table 3.

    The update is Σ_t G_t B_t P_t S_t x. Expert t has the gate G_t, the down-projection S_t to its
    own subspace, the core P_t and the up-projection B_t.

    Attributes:
        shared_rank: Dimensions of all subspaces together, S. Each expert has I = S / E.
    """

    factors = ('down', 'core', 'up')
    expert_input_factors = ('down', 'core')

    def _check_shared_rank(self) -> None:
        is_multiple = self.shared_rank > 0 and self.shared_rank % self.num_experts == 0
        description = f'0 or a multiple of num_experts = {self.num_experts}'
        require(is_multiple, 'shared_rank', self.shared_rank, description)

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the experts' S_t, cores P_t and up-projections B_t, by name."""
        E, R = self.expert_axis, self.rank_axis
        own_rank = self.shared_rank // self.num_experts
        return {
            'down': (E, inputs, Axis('rank', own_rank)),
            'core': (E, Axis('shared_rank', own_rank), R),
            'up': (E, R, outputs),
        }

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize S_t, P_t and B_t of each expert t.

        S_t is β times an orthonormal basis. P_t is drawn Kaiming-uniform and divided by β. B_t is
        zero. The paper does not describe this initialization. S_t corresponds to MALoRA's S_A, and
        the rows of P_t S_t have the same scale as in MALoRA.
        """
        E, R, own_rank = self.num_experts, self.rank, self.shared_rank // self.num_experts
        key, core_key = jax.random.split(key)
        return {
            'down': beta * initializers.orthonormal_bases(key, (E, inputs, own_rank)),
            'core': initializers.kaiming_uniform(core_key, (E, own_rank, R)) / beta,
            'up': jnp.zeros((E, R, outputs)),
        }

    def hidden(self, projected_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return the activations P_t S_t x of all experts t before gating, (N, P)."""
        E, R, core_EIR = self.num_experts, self.rank, leaves['core'].astype(projected_NQ.dtype)
        projected_NEI = projected_NQ.reshape(-1, E, core_EIR.shape[1])
        hidden_NER = jnp.einsum('NEI,EIR->NER', projected_NEI, core_EIR)
        return products.save_for_backward(hidden_NER.reshape(-1, E * R))

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection P_t S_t and the up-projection B_t of each expert t."""
        return leaves['down'] @ leaves['core'], leaves['up']


@dataclasses.dataclass(frozen=True)
class SharedUp(SubspaceStructure):
    """Experts with a shared up-projection S_B, the ablation "decomposing B_t" of Table 3.

    The update is S_B Σ_t G_t P_t A_t x. Expert t has the gate G_t, the down-projection A_t and the
    core P_t.
    """

    factors = ('down', 'core', 'shared_up')
    expert_input_factors = ('down', 'core')
    is_subspace_of_inputs = False

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the experts' A_t, their cores P_t and the shared S_B, by name."""
        E, R, S = self.expert_axis, self.rank_axis, Axis('shared_rank', self.shared_rank)
        return {'down': (E, inputs, R), 'core': (E, R, S), 'shared_up': (S, outputs)}

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return S_B Σ_t P_t h_t, (N, F), for the gated activations h_t of each expert t.

        P_t is the core of expert t, and S_B the shared up-projection.
        """
        return project_up_shared(hidden_NP, leaves['core'], leaves)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection A_t and the up-projection S_B P_t of each expert t."""
        return leaves['down'], leaves['core'] @ leaves['shared_up'][:, None]


@dataclasses.dataclass(frozen=True)
class HydraLoRA(Structure):
    """HydraLoRA (Tian et al. 2024): all experts share a down-projection A.

    The update is Σ_t G_t B_t A x. Expert t, a "head" in the HydraLoRA paper, has the gate G_t and
    the up-projection B_t.
    """

    factors: ClassVar[tuple[str, ...]] = ('shared_down', 'up')
    expert_input_factors: ClassVar[tuple[str, ...]] = ()
    first_factor_axis = 'shared_rank'

    @property
    def subspace_rank(self) -> int:
        """Number of dimensions of A x, the activations that all experts share: the rank R."""
        return self.rank

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the shared A and the experts' up-projections B_t, by name."""
        E, R, shared = self.expert_axis, self.rank_axis, Axis('shared_rank', self.rank)
        return {'shared_down': (inputs, shared), 'up': (E, R, outputs)}

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the shared down-projection, whose first rows are the trained LoRA's A."""
        return _copy_lora(fresh, 'shared_down', down_DR)

    def hidden(self, projected_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return A x, repeated for each expert, (N, P)."""
        return jnp.tile(projected_NQ, (1, self.num_experts))

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the shared down-projection A and the up-projection B_t of each expert t."""
        return leaves['shared_down'][:, None], leaves['up']


@dataclasses.dataclass(frozen=True)
class ALoRA(Structure):
    """ALoRA (Ban and Ji 2025): all experts share an up-projection B.

    The update is B Σ_t G_t A_t x. Expert t has the gate G_t and the down-projection A_t.
    """

    factors = ('down', 'shared_up')
    expert_input_factors = ('down',)
    is_subspace_of_inputs = False

    @property
    def subspace_rank(self) -> int:
        """Number of dimensions of A_t x, which the shared up-projection reads: the rank R."""
        return self.rank

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the experts' down-projections A_t and of the shared B, by name."""
        E, R, shared = self.expert_axis, self.rank_axis, Axis('shared_rank', self.rank)
        return {'down': (E, inputs, R), 'shared_up': (shared, outputs)}

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the experts' A_t. The first rows of each A_t are the trained LoRA's A."""
        return _copy_lora(fresh, 'down', down_DR)

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return B Σ_t h_t, (N, F), for the gated activations h_t of each expert t."""
        # A product with a constant matrix sums over experts without a change of layout.
        E, R = self.num_experts, self.rank
        return project_up_shared(hidden_NP, jnp.broadcast_to(jnp.eye(R), (E, R, R)), leaves)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection A_t of each expert t and the shared up-projection B."""
        return leaves['down'], leaves['shared_up'][:, None].repeat(self.num_experts, axis=1)

"""Structures: the low-rank factors of the experts, which of them are shared, and their products.

Each structure is a class. It computes Σ_t G_t(x) E_t x, a sum over the experts t, where G_t(x) is
the gate of expert t and E_t the product of its factors:

| class                  | expert E_t  | parameters, input to output   | methods           |
|------------------------|-------------|-------------------------------|-------------------|
| `IndependentExperts`   | B_t A_t     | `down`, `up`                  | LoRA, MoLoRA      |
| `DoRA`                 | B A         | `down`, `up`, `magnitude`     | DoRA              |
| `SharedDown`           | B_t P_t S_A | `shared_down`, `core`, `up`   | MALoRA            |
| `IndependentSubspaces` | B_t P_t S_t | `down`, `core`, `up`          | "w/o shared S_A"  |
| `SharedUp`             | S_B P_t A_t | `down`, `core`, `shared_up`   | "decomposing B_t" |
| `HydraLoRA`            | B_t A       | `shared_down`, `up`           | HydraLoRA         |

Quoted methods are ablations in Table 3 of the MALoRA paper. Equation numbers refer to this paper.
Arrays hold the transposes of the paper's matrices: the down-projection A_t is stored as (D, R).

All experts are computed together in rank space: their activations are stacked along the rank axis.
`first_factor` returns the matrix that multiplies the input, `hidden` returns the activations of all
experts, and `output` sums over the experts; `update` applies the gates in between. The structure
also defines everything else that depends on the factors: their shapes, initialization, export and
reports.

To add a structure, define `factors`, `expert_input_factors`, `leaf_axes`, and the products in which
it differs. `projections` is used by reports, and by the exports for other programs.

`LowRankExperts` applies the router and passes the gates to `update`. A structure may have a second
router: its `update` then computes the second gates from an additional parameter. The second gates
have no load-balancing loss and no routing statistics.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank of one expert, S rank of a
shared subspace, I = S / E, P = E · R stacked ranks, Q columns of the first factor, L layers.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.adapters import initializers, products

Leaves = Mapping[str, jax.Array]
# For each parameter name: the KIND in optimizer.KIND_rate, the config field that multiplies the
# learning rate; and a description for reports.
PARAMETER_KINDS = {
    'router': ('router', 'routers'),
    'down': ('down', 'down-projections, A'),
    'shared_down': ('down', 'shared subspace, S_A'),
    'core': ('core', 'cores, P'),
    'up': ('up', 'up-projections, B'),
    'shared_up': ('up', 'shared subspace, S_B'),
    'magnitude': ('magnitude', 'magnitudes'),
}


class Axis(NamedTuple):
    """An axis of a parameter.

    Attributes:
        name: Logical axis name, a key of `distributed.sharding.LOGICAL_AXIS_RULES`, which
            determines the sharding.
        size: Number of entries along the axis.
    """

    name: str
    size: int


def require(condition: bool, field: str, value: Any, description: str) -> None:
    """Check a setting of an adapter.

    Args:
        condition: True if the value is valid.
        field: Name of the field in section `adapter` of a config.
        value: Value of the field.
        description: Description of the valid values, which follows 'it must be' in the message.

    Raises:
        UserError: The condition is false.
    """
    if not condition:
        raise errors.out_of_range(f'adapter.{field}', value, description)


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
    """Base class of the structures: factors of the experts of one linear layer.

    Attributes:
        num_experts: Number of experts, E. A single expert has no router.
        rank: Rank of one expert, R.
        factors: Names of the parameters whose product is an expert, from input to output.
        kernel_dependent: Names of parameters whose initial value depends on the frozen kernel, such
            as DoRA's magnitude. `leaf_axes` describes all other parameters: the factors, and the
            weight of a second router if the structure has one.
        expert_input_factors: Names of the factors before the last one that are separate for each
            expert. With `Initialization.identical`, they have the same initial values in all
            experts.
        dispatch_factors: Names of the two factors of an expert that token dispatch applies; () if
            the structure does not support token dispatch.
        first_factor_axis: Logical axis name of the columns of the first factor, which multiplies
            the input.
        is_subspace_of_inputs: Whether the subspace, if there is one, is on the input side.

    Raises:
        UserError: A setting is out of range.
    """

    num_experts: int
    rank: int

    factors: ClassVar[tuple[str, ...]]
    kernel_dependent: ClassVar[tuple[str, ...]] = ()
    expert_input_factors: ClassVar[tuple[str, ...]]
    dispatch_factors: ClassVar[tuple[str, ...]] = ()
    first_factor_axis: ClassVar[str] = 'expert'
    is_subspace_of_inputs: ClassVar[bool] = True

    def __post_init__(self):
        require(self.num_experts >= 1, 'num_experts', self.num_experts, 'at least 1')
        require(self.rank >= 1, 'rank', self.rank, 'at least 1')

    @property
    def expert_axis(self) -> Axis:
        """Axis of the experts, size E."""
        return Axis('expert', self.num_experts)

    @property
    def rank_axis(self) -> Axis:
        """Axis of the rank of one expert, size R."""
        return Axis('rank', self.rank)

    @property
    def subspace_rank(self) -> int:
        """Dimensions of the subspace that experts share or divide among them; 0 without one."""
        return 0

    @property
    def is_mergeable(self) -> bool:
        """True if the update is one matrix for all tokens, which can be merged into the kernel."""
        return False

    @abc.abstractmethod
    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of each factor, and of a second router if there is one, by name.

        Args:
            inputs: Input axis of the linear layer, size D.
            outputs: Output axis of the linear layer, size F.
        """

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize the low-rank factors.

        By default, the last factor is zero, so that the update is zero at first. All other factors
        are Kaiming-uniform.

        Args:
            key: Random key.
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
            beta: β of eq. (9) and (10), for structures with cores on the input side.

        Returns:
            Float32 factors by name.
        """
        axes = self.leaf_axes(Axis('', inputs), Axis('', outputs))
        shapes = [tuple(axis.size for axis in axes[name]) for name in self.factors]
        values = map(initializers.kaiming_uniform, jax.random.split(key), shapes[:-1])
        return dict(zip(self.factors, [*values, jnp.zeros(shapes[-1])], strict=True))

    def first_factor(self, leaves: Leaves) -> jax.Array:
        """Return the factor that multiplies the input, (D, Q), concatenated over experts.

        Args:
            leaves: Parameters by name.
        """
        first = leaves[self.factors[0]]
        return first if first.ndim == 2 else products.stack_ranks(first)

    def hidden(self, projected_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return the activations of all experts before gating, (N, P).

        Args:
            projected_NQ: (N, Q), input times the first factor.
            leaves: Parameters by name.
        """
        return projected_NQ

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Multiply the gated activations with the remaining factors, and sum over experts, (N, F).

        The remaining factors are those that `first_factor` and `hidden` do not apply: by default,
        only the up-projection of each expert.

        Args:
            hidden_NP: (N, P), gated activations h_t of all experts.
            leaves: Parameters by name.
        """
        return products.sum_of_experts(hidden_NP, leaves['up'])

    def update(
        self, projected_NQ: jax.Array, leaves: Leaves, gates_NE: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        """Return the update scale · Σ_t G_t E_t x, (N, F).

        G_t is the gate of expert t, and E_t the product of its factors. By default, the gates
        multiply the activations that `hidden` returns. Override this method to apply the gates
        elsewhere, or to add a second router. Such a structure must leave `dispatch_factors` empty,
        because token dispatch does not call this method.

        Args:
            projected_NQ: (N, Q), input times the first factor.
            leaves: Parameters by name.
            gates_NE: (N, E), gates of the experts; None with a single expert.
            scale: Scale of the update, (), in the dtype of the activations.
        """
        hidden_NP = self.hidden(projected_NQ, leaves)
        if gates_NE is not None:
            hidden_NP = products.gate(hidden_NP, gates_NE)
        return self.output(scale * hidden_NP, leaves)

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the down-projection and the up-projection of each expert.

        Args:
            leaves: Parameters of one linear layer in all transformer layers, (L, ...), by name.

        Returns:
            Down-projections, (L, E, D, R), or (L, 1, D, R) if the experts share them; and
            up-projections, (L, E, R, F).

        Raises:
            UserError: An expert of this structure is not a product of two matrices.
        """
        raise errors.UserError(
            f'The experts of {type(self).__name__} are not products of two matrices.'
        )


@runtime_checkable
class StartsFromLoRA(Protocol):
    """`typing.Protocol` of structures whose experts can all start as copies of one trained LoRA."""

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return initial factors that copy the down-projection A of a trained LoRA to all experts.

        The first activations of each expert are then A x. An expert may have a higher rank than the
        LoRA; its other activations are still initialized at random.

        Args:
            fresh: Random initial values of the factors, by name.
            down_DR: (D, R), A of the trained LoRA, transposed; R is at most the rank of an expert.
            beta: β of eq. (9) and (10).

        Returns:
            The factors that differ from `fresh`, by name.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SubspaceStructure(Structure):
    """Base class of structures with a subspace on the input side or on the output side.

    Attributes:
        shared_rank: Dimensions of the subspace, S (d in the paper).
    """

    shared_rank: int

    def __post_init__(self):
        super().__post_init__()
        self._check_shared_rank()

    def _check_shared_rank(self) -> None:
        description = f'0 or at least rank = {self.rank}'
        require(self.shared_rank >= self.rank, 'shared_rank', self.shared_rank, description)

    @property
    def subspace_rank(self) -> int:
        """Dimensions of the subspace, S."""
        return self.shared_rank


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
        return {'down': fresh['down'].at[:, :, : down_DR.shape[-1]].set(down_DR)}

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the down-projection A_t and the up-projection B_t of each expert t."""
        return leaves['down'], leaves['up']

    def merged_kernel(self, kernel_DF: jax.Array, leaves: Leaves, scale: float) -> jax.Array:
        """Return the merged kernel W + scale · B A of a single expert, (D, F) float32.

        Args:
            kernel_DF: (D, F), frozen kernel W.
            leaves: Parameters by name.
            scale: Scale of the update.
        """
        return kernel_DF.astype(jnp.float32) + scale * (leaves['down'][0] @ leaves['up'][0])


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

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
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

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
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
        shared_NS = products.sum_of_experts(hidden_NP, leaves['core'])
        return shared_NS @ leaves['shared_up'].astype(hidden_NP.dtype)

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the down-projection A_t and the up-projection S_B P_t of each expert t."""
        return leaves['down'], leaves['core'] @ leaves['shared_up'][:, None]


@dataclasses.dataclass(frozen=True)
class HydraLoRA(Structure):
    """HydraLoRA (Tian et al. 2024): all experts share a down-projection A.

    The update is Σ_t G_t B_t A x. Expert t, a "head" in the HydraLoRA paper, has the gate G_t and
    the up-projection B_t.
    """

    factors = ('shared_down', 'up')
    expert_input_factors = ()
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
        return {'shared_down': fresh['shared_down'].at[:, : down_DR.shape[-1]].set(down_DR)}

    def hidden(self, projected_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return A x, repeated for each expert, (N, P)."""
        return jnp.tile(projected_NQ, (1, self.num_experts))

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the shared down-projection A and the up-projection B_t of each expert t."""
        return leaves['shared_down'][:, None], leaves['up']

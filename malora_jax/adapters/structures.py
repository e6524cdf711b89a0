"""Structures: the low-rank factors of the experts, which of them are shared, and their products.

One class per structure. With gates G_t of N experts, a structure computes Σ_t G_t(x) E_t x:

| class                  | expert E_t  | leaves, from input to output  | methods           |
|------------------------|-------------|-------------------------------|-------------------|
| `IndependentExperts`   | B_t A_t     | `down`, `up`                  | LoRA, MoLoRA      |
| `DoRA`                 | B A         | `down`, `up`, `magnitude`     | DoRA              |
| `SharedDown`           | B_t P_t S_A | `shared_down`, `core`, `up`   | MALoRA            |
| `IndependentSubspaces` | B_t P_t S_t | `down`, `core`, `up`          | "w/o shared S_A"  |
| `SharedUp`             | S_B P_t A_t | `down`, `core`, `shared_up`   | "decomposing B_t" |
| `Heads`                | B_t A       | `shared_down`, `up`           | HydraLoRA         |

All experts are computed together in rank space: `first` is the matrix that meets the input,
`hidden` are the activations of all experts side by side, and `output` is their sum; `update` puts
the gates in between. Everything else that depends on the factors (shapes, initial values, export,
reports) asks the structure, too. A new structure defines `factors`, `per_expert`, `leaves`, and the
products in which it differs; `projections` and `mean_update` are for reports and static export.

The router of a linear and its gates come from `LowRankExperts`. A structure with a second router
makes its gates in `update`, from a leaf of its own; they have no balance loss and no statistics.

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
# For each leaf, the field optimizer.<...>_rate that scales its learning rate, and its description.
KINDS = {
    'router': ('router', 'routers'),
    'down': ('down', 'down-projections, A'),
    'shared_down': ('down', 'shared subspace, S_A'),
    'core': ('core', 'cores, P'),
    'up': ('up', 'up-projections, B'),
    'shared_up': ('up', 'shared subspace, S_B'),
    'magnitude': ('magnitude', 'magnitudes'),
}


class Axis(NamedTuple):
    """An axis of a leaf: its logical name, which decides how it is sharded, and its size."""

    name: str
    size: int


def require(condition: bool, field: str, value: Any, description: str) -> None:
    """Check a setting of an adapter.

    Raises:
        UserError: The condition does not hold.
    """
    if not condition:
        raise errors.out_of_range(f'adapter.{field}', value, description)


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
    """The part that all structures have in common.

    Attributes:
        num_experts: E. A single expert has no router.
        rank: R, the rank of one expert.
        factors: Names of the leaves whose product is an expert, from input to output.
        extra: Names of leaves that depend on the kernel, such as DoRA's magnitude. `leaves` has all
            others: the factors, and possibly a second router.
        per_expert: Names of those leaves on the input's side that each expert has for itself.
        dispatched: Names of an expert's two factors if tokens can be dispatched to experts.
        first_axis: Logical name of the columns of the first factor.
        is_subspace_of_inputs: Whether the subspace, if there is one, is on the input's side.
    """

    num_experts: int
    rank: int

    factors: ClassVar[tuple[str, ...]]
    extra: ClassVar[tuple[str, ...]] = ()
    per_expert: ClassVar[tuple[str, ...]]
    dispatched: ClassVar[tuple[str, ...]] = ()
    first_axis: ClassVar[str] = 'expert'
    is_subspace_of_inputs: ClassVar[bool] = True

    def __post_init__(self):
        require(self.num_experts >= 1, 'num_experts', self.num_experts, 'at least 1')
        require(self.rank >= 1, 'rank', self.rank, 'at least 1')

    @property
    def experts(self) -> Axis:
        """The axis of the experts."""
        return Axis('expert', self.num_experts)

    @property
    def ranks(self) -> Axis:
        """The axis of one expert's rank."""
        return Axis('rank', self.rank)

    @property
    def subspace_rank(self) -> int:
        """Dimensions of the subspace that experts share or divide among them; 0 if none."""
        return 0

    @property
    def is_mergeable(self) -> bool:
        """True if the update is one matrix for all tokens, which can be merged into W."""
        return False

    @abc.abstractmethod
    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of each factor of a linear.

        Args:
            inputs: D.
            outputs: F.
        """

    def start(self, key: jax.Array, inputs: int, outputs: int, beta: float) -> dict[str, jax.Array]:
        """Draw the initial values of the factors, float32: by default as linear layers.

        All are Kaiming-uniform but the last, which is zero, so that the update is zero, too.

        Args:
            key: Random key.
            inputs: D.
            outputs: F.
            beta: β of eq. (9) and (10), for structures with cores on the input's side.
        """
        leaves = self.leaves(Axis('', inputs), Axis('', outputs))
        shapes = [tuple(axis.size for axis in leaves[name]) for name in self.factors]
        values = map(initializers.kaiming_uniform, jax.random.split(key), shapes[:-1])
        return dict(zip(self.factors, [*values, jnp.zeros(shapes[-1])], strict=True))

    def first(self, leaves: Leaves) -> jax.Array:
        """Return the factor that meets the input, (D, Q), stacked if each expert has its own."""
        first = leaves[self.factors[0]]
        return first if first.ndim == 2 else products.stack_ranks(first)

    def hidden(self, first_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return the activations of all experts before gating, (N, P).

        Args:
            first_NQ: The input times the first factor.
            leaves: The factors.
        """
        return first_NQ

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return Σ_t B_t h_t of gated activations, (N, F)."""
        return products.sum_of_experts(hidden_NP, leaves['up'])

    def update(
        self, first_NQ: jax.Array, leaves: Leaves, gates_NE: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        """Compute scale · Σ_t G_t E_t x, (N, F).

        Override it if the gates do not multiply the activations of the experts, or for a second
        router; such a structure leaves `dispatched` empty, because dispatch does not call this.

        Args:
            first_NQ: The input times the first factor.
            leaves: The factors.
            gates_NE: Gates of the experts; None with a single expert.
            scale: Factor of the update, in the dtype of the activations.
        """
        hidden_NP = self.hidden(first_NQ, leaves)
        if gates_NE is not None:
            hidden_NP = products.gate(hidden_NP, gates_NE)
        return self.output(scale * hidden_NP, leaves)

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return each expert as two matrices, whose product is its update.

        Args:
            leaves: Factors of a linear in all layers, (L, ...).

        Returns:
            (L, E, D, R), or (L, 1, D, R) if all experts share it; and (L, E, R, F).

        Raises:
            UserError: Experts of this structure are no such products.
        """
        raise errors.UserError(f'{type(self).__name__} has no experts that are two matrices each.')

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two matrices of least rank whose product is Σ_t G_t E_t for constant gates.

        Args:
            leaves: Factors of a linear in all layers, (L, ...).
            gates_LE: Gate of each expert.

        Returns:
            (L, D, Q) and (L, Q, F).

        Raises:
            UserError: The update of this structure is no such product.
        """
        raise errors.UserError(f'The update of {type(self).__name__} is not one LoRA.')


@runtime_checkable
class StartsFromLoRA(Protocol):
    """A structure whose experts can all start as one LoRA of no higher rank."""

    def from_lora(self, fresh: Leaves, down_DR: jax.Array, beta: float) -> dict[str, jax.Array]:
        """Return factors on the input's side with which every expert begins with A x.

        Dimensions beyond the LoRA's rank keep their initial values.

        Args:
            fresh: Initial values of the factors.
            down_DR: A of the LoRA.
            beta: β of eq. (9) and (10).
        """
        ...


@dataclasses.dataclass(frozen=True)
class SubspaceStructure(Structure):
    """A structure with a subspace, on the side of the inputs or of the outputs.

    Attributes:
        shared_rank: S (d in the paper), the dimensions of the subspace.
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
        """Dimensions of the subspace."""
        return self.shared_rank


@dataclasses.dataclass(frozen=True)
class IndependentExperts(Structure):
    """Σ_t G_t B_t A_t x: LoRA with one expert, a mixture of LoRAs (MoLoRA) with more."""

    factors = ('down', 'up')
    per_expert = ('down',)
    dispatched = ('down', 'up')

    @property
    def is_mergeable(self) -> bool:
        """True for a single expert, which every token uses."""
        return self.num_experts == 1

    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A_t and B_t."""
        E, R = self.experts, self.ranks
        return {'down': (E, inputs, R), 'up': (E, R, outputs)}

    def from_lora(self, fresh: Leaves, down_DR: jax.Array, beta: float) -> dict[str, jax.Array]:
        """Put A into the first dimensions of every A_t."""
        return {'down': fresh['down'].at[:, :, : down_DR.shape[-1]].set(down_DR)}

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return A_t and B_t, transposed."""
        return leaves['down'], leaves['up']

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return A_t and G_t B_t of all experts side by side, transposed: rank E · R."""
        up_LERF = gates_LE[:, :, None, None] * leaves['up']
        L, E, D, R = leaves['down'].shape
        down_LDQ = leaves['down'].transpose(0, 2, 1, 3).reshape(L, D, E * R)
        return down_LDQ, up_LERF.reshape(L, E * R, -1)

    def merged(self, kernel_DF: jax.Array, leaves: Leaves, scale: float) -> jax.Array:
        """Return W + scale · B A of a single expert, (D, F) float32."""
        return kernel_DF.astype(jnp.float32) + scale * (leaves['down'][0] @ leaves['up'][0])


@dataclasses.dataclass(frozen=True)
class DoRA(IndependentExperts):
    """One expert, and a trained length for each column of W + scale · B A (Liu et al. 2024)."""

    num_experts: int = dataclasses.field(default=1, init=False)

    extra = ('magnitude',)

    def merged(self, kernel_DF: jax.Array, leaves: Leaves, scale: float) -> jax.Array:
        """Return m (W + scale · B A) / ‖W + scale · B A‖, (D, F) float32."""
        down_DR, up_RF = leaves['down'][0], leaves['up'][0]
        lengths_F = products.column_lengths(kernel_DF, down_DR, up_RF, scale)
        return super().merged(kernel_DF, leaves, scale) * (leaves['magnitude'] / lengths_F)[None]

    def length_operations(self, inputs: int, outputs: int) -> int:
        """Count the operations of `products.column_lengths`."""
        # Aᵀ W and ‖w‖², then Aᵀ A and its product with B.
        return 2 * (inputs * outputs * (self.rank + 1) + self.rank**2 * (inputs + outputs))


@dataclasses.dataclass(frozen=True)
class SharedDown(SubspaceStructure):
    """Σ_t G_t B_t P_t S_A x (MALoRA): S_A is shared, P_t and B_t belong to the experts."""

    factors = ('shared_down', 'core', 'up')
    per_expert = ('core',)
    dispatched = ('core', 'up')
    first_axis = 'shared_rank'

    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of S_A, P_t and B_t."""
        E, R, S = self.experts, self.ranks, Axis('shared_rank', self.shared_rank)
        return {'shared_down': (inputs, S), 'core': (E, S, R), 'up': (E, R, outputs)}

    def start(self, key: jax.Array, inputs: int, outputs: int, beta: float) -> dict[str, jax.Array]:
        """Draw S_A and P_t by eq. (8) to (10)."""
        E, R = self.num_experts, self.rank
        key, _ = jax.random.split(key)
        shared_down_DS, core_ESR = initializers.shared_subspace(
            key, inputs=inputs, num_experts=E, rank=R, shared_rank=self.shared_rank, beta=beta
        )
        return {'shared_down': shared_down_DS, 'core': core_ESR, 'up': jnp.zeros((E, R, outputs))}

    def from_lora(self, fresh: Leaves, down_DR: jax.Array, beta: float) -> dict[str, jax.Array]:
        """Let the first vectors of S_A span the rows of A; the cores put A together from them."""
        R, S = down_DR.shape[-1], self.shared_rank
        both_DQ = jnp.concatenate([down_DR, fresh['shared_down']], axis=1)
        basis_DQ, triangle_QQ = jnp.linalg.qr(both_DQ)
        core_ESR = fresh['core'].at[:, :, :R].set(0)
        return {
            'shared_down': beta * basis_DQ[:, :S],
            'core': core_ESR.at[:, :R, :R].set(triangle_QQ[:R, :R] / beta),
        }

    def hidden(self, first_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return P_t S_A x of all experts."""
        core_SP = products.stack_ranks(leaves['core']).astype(first_NQ.dtype)
        return products.saved(first_NQ @ core_SP)

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return P_t S_A and B_t, transposed."""
        return leaves['shared_down'][:, None] @ leaves['core'], leaves['up']

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return S_A and Σ_t G_t B_t P_t, transposed."""
        own_LESF = gates_LE[:, :, None, None] * (leaves['core'] @ leaves['up'])
        return leaves['shared_down'], own_LESF.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class IndependentSubspaces(SubspaceStructure):
    """Σ_t G_t B_t P_t S_t x, "w/o shared S_A" of Table 3: each expert has its own subspace.

    Attributes:
        shared_rank: S, the dimensions of all subspaces together; each has I = S / E.
    """

    factors = ('down', 'core', 'up')
    per_expert = ('down', 'core')

    def _check_shared_rank(self) -> None:
        is_multiple = self.shared_rank > 0 and self.shared_rank % self.num_experts == 0
        description = f'0 or a multiple of num_experts = {self.num_experts}'
        require(is_multiple, 'shared_rank', self.shared_rank, description)

    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of S_t, P_t and B_t."""
        E, R = self.experts, self.ranks
        own = self.shared_rank // self.num_experts
        return {
            'down': (E, inputs, Axis('rank', own)),
            'core': (E, Axis('shared_rank', own), R),
            'up': (E, R, outputs),
        }

    def start(self, key: jax.Array, inputs: int, outputs: int, beta: float) -> dict[str, jax.Array]:
        """Draw S_t as β times an orthonormal basis, as S_A, and P_t Kaiming-uniform over β.

        The paper does not describe this start. The rows of P_t S_t have the scale of MALoRA's.
        """
        E, R, own = self.num_experts, self.rank, self.shared_rank // self.num_experts
        key, core_key = jax.random.split(key)
        return {
            'down': beta * initializers.orthonormal_bases(key, (E, inputs, own)),
            'core': initializers.kaiming_uniform(core_key, (E, own, R)) / beta,
            'up': jnp.zeros((E, R, outputs)),
        }

    def hidden(self, first_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return P_t S_t x of all experts."""
        E, R, core_EIR = self.num_experts, self.rank, leaves['core'].astype(first_NQ.dtype)
        first_NEI = first_NQ.reshape(-1, E, core_EIR.shape[1])
        hidden_NER = jnp.einsum('NEI,EIR->NER', first_NEI, core_EIR)
        return products.saved(hidden_NER.reshape(-1, E * R))

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return P_t S_t and B_t, transposed."""
        return leaves['down'] @ leaves['core'], leaves['up']

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return S_t and G_t B_t P_t of all experts side by side, transposed: rank S."""
        own = {'down': leaves['down'], 'up': leaves['core'] @ leaves['up']}
        return IndependentExperts(self.num_experts, self.rank).mean_update(own, gates_LE)


@dataclasses.dataclass(frozen=True)
class SharedUp(SubspaceStructure):
    """S_B Σ_t G_t P_t A_t x, "decomposing B_t" of Table 3: the output's side is shared."""

    factors = ('down', 'core', 'shared_up')
    per_expert = ('down', 'core')
    is_subspace_of_inputs = False

    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A_t, P_t and S_B."""
        E, R, S = self.experts, self.ranks, Axis('shared_rank', self.shared_rank)
        return {'down': (E, inputs, R), 'core': (E, R, S), 'shared_up': (S, outputs)}

    def output(self, hidden_NP: jax.Array, leaves: Leaves) -> jax.Array:
        """Return S_B Σ_t P_t h_t."""
        shared_NS = products.sum_of_experts(hidden_NP, leaves['core'])
        return shared_NS @ leaves['shared_up'].astype(hidden_NP.dtype)

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return A_t and S_B P_t, transposed."""
        return leaves['down'], leaves['core'] @ leaves['shared_up'][:, None]

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return Σ_t G_t P_t A_t and S_B, transposed."""
        own_LEDS = gates_LE[:, :, None, None] * (leaves['down'] @ leaves['core'])
        return own_LEDS.sum(axis=1), leaves['shared_up']


@dataclasses.dataclass(frozen=True)
class Heads(Structure):
    """Σ_t G_t B_t A x: one A, and a B per expert (HydraLoRA, Tian et al. 2024)."""

    factors = ('shared_down', 'up')
    per_expert = ()
    first_axis = 'shared_rank'

    @property
    def subspace_rank(self) -> int:
        """Dimensions of A x."""
        return self.rank

    def leaves(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A and B_t."""
        E, R, shared = self.experts, self.ranks, Axis('shared_rank', self.rank)
        return {'shared_down': (inputs, shared), 'up': (E, R, outputs)}

    def from_lora(self, fresh: Leaves, down_DR: jax.Array, beta: float) -> dict[str, jax.Array]:
        """Put A into the first dimensions of the shared A."""
        return {'shared_down': fresh['shared_down'].at[:, : down_DR.shape[-1]].set(down_DR)}

    def hidden(self, first_NQ: jax.Array, leaves: Leaves) -> jax.Array:
        """Return A x once per expert."""
        return jnp.tile(first_NQ, (1, self.num_experts))

    def projections(self, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return A, once for all experts, and B_t, transposed."""
        return leaves['shared_down'][:, None], leaves['up']

    def mean_update(
        self, leaves: Mapping[str, np.ndarray], gates_LE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return A and Σ_t G_t B_t, transposed."""
        own_LERF = gates_LE[:, :, None, None] * leaves['up']
        return leaves['shared_down'], own_LERF.sum(axis=1)

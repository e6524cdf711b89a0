"""Base class of the structures of adapters, and the axes and kinds of their parameters.

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
shared subspace, P = E · R stacked ranks, Q columns of the first factor, L layers.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import initializers, products

Leaves = Mapping[str, jax.Array]
# For each parameter name: the KIND in optimizer.KIND_rate, the config field that multiplies the
# learning rate; and a description for reports.
PARAMETER_KINDS = {
    'router': ('router', 'routers'),
    'threshold': ('router', 'weights of thresholds'),
    'threshold_bias': ('router', 'biases of thresholds'),
    'balance_bias': ('router', 'load-balancing biases'),
    'up_router': ('router', 'routers of the up-projections'),
    'down': ('down', 'down-projections, A'),
    'shared_down': ('down', 'shared subspace, S_A'),
    'core': ('core', 'cores, P'),
    'up': ('up', 'up-projections, B'),
    'shared_up': ('up', 'shared subspace, S_B'),
    'task_weights': ('router', 'weights of tasks'),
    'magnitude': ('magnitude', 'magnitudes'),
    'residual_down': ('down', 'down-projections of the residual, A⁰'),
    'residual_up': ('up', 'up-projections of the residual, B⁰'),
}
# Labels by which the optimizer finds the learning rate of a parameter: its name, or else its kind.
# Checkpoints store an entry for each of them: with another label, earlier ones could not be read.
PARTITION_LABELS = ('router', 'down', 'shared_down', 'core', 'up', 'shared_up', 'magnitude')


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
            as DoRA's magnitude. `leaf_axes` describes all other parameters: the factors, those of
            a residual, and the weight of a second router if the structure has one.
        frozen: Names of parameters that are never trained.
        expert_input_factors: Names of the factors before the last one that are separate for each
            expert. With `Initialization.identical`, they have the same initial values in all
            experts.
        dispatch_factors: Names of the two factors of an expert that token dispatch applies; () if
            the structure does not support token dispatch.
        first_factor_axis: Logical axis name of the columns of the first factor, which multiplies
            the input.
        is_subspace_of_inputs: Whether the subspace, if there is one, is on the input side.
        is_routed: Whether a router weights the experts, if there are several.

    Raises:
        UserError: A setting is out of range.
    """

    num_experts: int
    rank: int

    factors: ClassVar[tuple[str, ...]]
    kernel_dependent: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()
    expert_input_factors: ClassVar[tuple[str, ...]]
    dispatch_factors: ClassVar[tuple[str, ...]] = ()
    first_factor_axis: ClassVar[str] = 'expert'
    is_subspace_of_inputs: ClassVar[bool] = True
    is_routed: ClassVar[bool] = True

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

    @property
    def summed_factors(self) -> tuple[str, ...]:
        """Names of the factors that are added up over the experts before they are multiplied."""
        return ()

    @property
    def has_masks(self) -> bool:
        """True if `masked_update` computes the update in training, with masks of its own."""
        return False

    @property
    def num_residual_experts(self) -> int:
        """Number of experts of the residual, see `residual`; 0 without one."""
        return 0

    def check_size(self, inputs: int, outputs: int, linear: str) -> None:
        """Check that the structure suits a linear layer.

        Args:
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
            linear: Name of the linear layer, for the message.

        Raises:
            UserError: The shared subspace has more dimensions than the input.
        """
        if self.is_subspace_of_inputs and self.subspace_rank > inputs:
            raise errors.UserError(
                f'adapter.shared_rank is {self.subspace_rank}; it must be at most {inputs}, '
                f'the input width of {linear}.'
            )

    @abc.abstractmethod
    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of each parameter that does not depend on the kernel, by name.

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

    def masked_update(
        self,
        key: jax.Array,
        projected_NQ: jax.Array,
        leaves: Leaves,
        scale: jax.Array,
        gates_NE: jax.Array | None = None,
    ) -> jax.Array:
        """Return the update with the dropout masks of the structure, (N, F).

        By default, there are none. `has_masks` says whether a structure overrides this method.

        Args:
            key: Random key of the masks.
            projected_NQ: (N, Q), input times the first factor.
            leaves: Parameters by name.
            scale: Scale of the update, (), in the dtype of the activations.
            gates_NE: (N, E), gates of the experts; None without a router.
        """
        return self.update(projected_NQ, leaves, gates_NE, scale)

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection and the up-projection of each expert.

        Args:
            leaves: Parameters of one linear layer in all transformer layers, (L, ...), by name:
                NumPy or JAX arrays.

        Returns:
            Down-projections, (L, E, D, R), or (L, 1, D, R) if the experts share them; and
            up-projections, (L, E, R, F), or (L, U, R, F) if a second router weights U of them.

        Raises:
            UserError: An expert of this structure is not a product of two matrices.
        """
        raise errors.UserError(
            f'The experts of {type(self).__name__} are not products of two matrices.'
        )

    def residual(self, leaves: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """Return the projections of the residual: experts that every token uses with the gate 1.

        The residual belongs to the frozen linear layer: dropout does not apply to its input, and it
        is not trained. It is multiplied by the scale of the update, like the other experts.

        Args:
            leaves: Parameters by name, of one transformer layer or of all, (L, ...).

        Returns:
            Down-projections, (..., U, D, R), and up-projections, (..., U, R, F), of the U experts;
            None without a residual.
        """
        return None

    def merged_kernel(self, kernel_DF: jax.Array, leaves: Leaves, scale: float) -> jax.Array:
        """Return the merged kernel W + scale · ΔW, (D, F) float32.

        ΔW is the product of the only expert, or the sum over experts with the gate 1 that share
        their down-projection; and the residual, if there is one.

        Args:
            kernel_DF: (D, F), frozen kernel W.
            leaves: Parameters by name.
            scale: Scale of the update.
        """
        leaves = {name: leaf[None] for name, leaf in leaves.items()}
        down, up = self.projections(leaves)
        update_DF = down[0, 0] @ up[0].sum(axis=0)
        residual = self.residual(leaves)
        if residual is not None:
            update_DF += (residual[0] @ residual[1]).sum(axis=(0, 1))
        return kernel_DF.astype(jnp.float32) + scale * update_DF


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

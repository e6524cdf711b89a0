"""Adapter configuration: structure of the experts, router, initialization and training options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import errors
from malora_jax.adapters import initializers
from malora_jax.adapters.base_structure import Axis, Structure, require
from malora_jax.adapters.dropout import check_masks
from malora_jax.adapters.goat import GOAT
from malora_jax.adapters.heads import MultiHeadLoRA
from malora_jax.adapters.rank_experts import RankExperts
from malora_jax.adapters.routers import BALANCE_BIAS, RouterConfig
from malora_jax.adapters.structures import DoRA, IndependentExperts
from malora_jax.adapters.task_experts import TaskExperts

# Linear layers of a transformer layer that can be adapted.
LINEARS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
DEFAULT_TARGETS = ('q', 'k', 'v', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Settings for the initialization of the low-rank factors.

    Attributes:
        beta: β of eq. (9) and (10) of the MALoRA paper. The shared down-projection S_A starts
            multiplied by β, and each expert's core P_t starts divided by β.
        identical: Whether all experts start with the same values: the down-projection or core of
            every expert is initialized as a copy of the first expert's ("same A_t" in Table 3).
            This is a control experiment: sharing a factor also gives all experts the same start,
            and this setting gives them the same start without sharing.
        is_sparse: Whether the first factor starts with normal values in a random share K / E of the
            inputs of each rank, and zeros in the others (FlyLoRA).
    """

    beta: float = 1.0
    identical: bool = False
    is_sparse: bool = False

    def __post_init__(self):
        require(self.beta > 0, 'beta', self.beta, 'positive')


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Configuration of an adapter: its experts, its router and all other settings.

    Use `method` to create the configuration of a named method:

        config = method('malora', rank=16, shared_rank=48)

    Attributes:
        structure: Low-rank factors of the experts, and which of them the experts share.
        router: Settings of the top-k router. A single expert has no router: every token uses it.
            Experts that are weighted by the task or added up have none, either.
        alpha: LoRA's α. The update is multiplied by α / rank.
        rank_stabilized: Whether the update is multiplied by α / √rank instead (rsLoRA,
            Kalajdzievski 2023).
        initialization: Settings for the initialization of the factors.
        dropout: Dropout rate at the input of the down-projection, in training only.
        frozen: Names of the parameters that are not trained. With ('router',) the routing stays
            random, which is a control experiment.
        targets: Names of the adapted linear layers, from `LINEARS`.
        dispatch: Whether tokens are sorted by expert and sent only to their top-k experts, as in
            the paper. Otherwise every token is multiplied with all experts, and the gates outside
            the top k are zero. Both give the same result.
        experts_per_layer: Number of experts in each of several equal groups of consecutive layers,
            from the first to the last layer; () for `num_experts` in all layers. The parameters
            have room for `num_experts` in every layer, but the router does not choose the others.
        alignment_weight: Coefficient of the alignment loss between tasks (Align-LoRA, see
            `alignment`); 0 for none.
        similarity_weight: Coefficient of the similarity loss between experts (D²MoRA, see
            `similarity_loss`); 0 for none.
        dropout_masks: Dropout masks at the input of the down-projections, one of `dropout.MASKS`:
            'shared', or 'expert' for a mask for each expert.

    Raises:
        UserError: A setting is out of range, unknown, or contradicts another setting.
    """

    structure: Structure
    router: RouterConfig
    alpha: float
    rank_stabilized: bool = False
    initialization: Initialization = Initialization()
    dropout: float = 0.05
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = DEFAULT_TARGETS
    dispatch: bool = False
    experts_per_layer: tuple[int, ...] = ()
    alignment_weight: float = 0.0
    similarity_weight: float = 0.0
    dropout_masks: str = 'shared'

    def __post_init__(self):
        router = self.router
        require(
            router.top_k <= self.num_experts,
            'top_k',
            router.top_k,
            f'at most num_experts = {self.num_experts}',
        )
        require(
            not self.initialization.identical
            or (self.has_router and bool(self.structure.expert_input_factors)),
            'identical_start',
            True,
            'False unless several experts have their own down-projections or cores',
        )
        require(self.alpha > 0, 'alpha', self.alpha, 'positive')
        require(0 <= self.dropout < 1, 'dropout', self.dropout, 'at least 0 and below 1')
        require(self.alignment_weight >= 0, 'alignment_weight', self.alignment_weight, 'at least 0')
        require(
            self.similarity_weight == 0 or (self.similarity_weight > 0 and self.has_router),
            'similarity_weight',
            self.similarity_weight,
            'at least 0, and 0 for a single expert',
        )
        check_masks(self.dropout_masks, self.structure, router, self.dispatch)
        self._check_frozen()
        self._check_scores()
        if not self.structure.is_routed:
            self._check_unrouted_experts()
        require(
            router.gates != 'equal'
            or not router.has_weight
            or (self.has_router and self._router_learns_without_gates),
            'equal_gates',
            True,
            "False unless num_experts > top_k and balance_weight > 0, or 'router' is in "
            'adapter.frozen: with equal gates, only the load-balancing loss trains the router, '
            'or adapter.samples',
        )
        require(
            router.samples == 0
            or (
                router.gates == 'equal'
                and router.scores == 'softmax'
                and router.bias_rate == 0
                and router.top_k < self.num_experts
                and 'router' not in self.frozen
            ),
            'samples',
            router.samples,
            "0 unless equal_gates is True, scores is 'softmax', bias_rate is 0, "
            "num_experts > top_k, and 'router' is not in adapter.frozen: samples train the router "
            'of equal gates',
        )
        require(
            not self.dispatch
            or (
                self.has_router
                and bool(self.structure.dispatch_factors)
                and router.scores != 'threshold'
            ),
            'dispatch',
            True,
            "False unless num_experts > 1, subspace is 'down', num_up_experts is 0, start is "
            "'random' and scores is not 'threshold'",
        )
        require(
            router.input == 'x' or self.structure.first_factor_axis != 'expert',
            'router_input',
            router.input,
            "'x' unless the experts share a down-projection (shared_rank > 0 and subspace 'down' "
            "or 'heads')",
        )
        if self.structure.num_residual_experts and self.has_router:
            self._check_residual()
        if self.experts_per_layer:
            self._check_experts_per_layer()
        require(len(self.targets) > 0, 'targets', self.targets, 'at least one linear layer')
        for name in self.targets:
            if name not in LINEARS:
                raise errors.unknown_name('linear layer in adapter.targets', name, LINEARS)

    def _check_residual(self) -> None:
        require(
            self.router.gate_sum(self.num_experts) == 1,
            'renormalize',
            False,
            "True if start is 'svd': the residual is the mean of gates that sum to one",
        )
        require(
            not self.experts_per_layer,
            'experts_per_layer',
            self.experts_per_layer,
            "() if start is 'svd'",
        )

    def _check_experts_per_layer(self) -> None:
        counts, router = self.experts_per_layer, self.router
        # If every token uses all experts, a layer may have any number of them.
        is_dense = router.top_k == self.num_experts and router.gates != 'equal'
        fewest = 1 if is_dense else router.top_k
        require(
            self.has_router and min(counts) >= fewest and max(counts) == self.num_experts,
            'experts_per_layer',
            counts,
            f'() for a single expert, or numbers of at least {fewest}, the largest of them '
            f'num_experts = {self.num_experts}',
        )

    def _check_scores(self) -> None:
        router = self.router
        require(
            router.scores == 'softmax' or self.has_router,
            'scores',
            router.scores,
            "'softmax' without a router",
        )
        require(
            router.bias_rate == 0 or (self.has_router and router.top_k < self.num_experts),
            'bias_rate',
            router.bias_rate,
            '0 unless num_experts > top_k, because the loads are equal otherwise',
        )
        is_of_ranks = isinstance(self.structure, RankExperts)
        for field, value, needs_ranks in (
            ('scores', 'magnitude', router.scores == 'magnitude'),
            ('start', 'sparse', self.initialization.is_sparse),
        ):
            require(
                is_of_ranks or not needs_ranks, field, value, "another unless subspace is 'ranks'"
            )

    def _check_unrouted_experts(self) -> None:
        router = self.router
        subspace = 'tasks' if isinstance(self.structure, TaskExperts) else 'summed_heads'
        only = f'if subspace is {subspace!r}, which uses all experts'
        require(
            router.top_k == self.num_experts,
            'top_k',
            router.top_k,
            f'equal to num_experts ({self.num_experts}) {only}',
        )
        require(router.gates == 'softmax', 'renormalize', True, f'False {only}')

    def _check_frozen(self) -> None:
        trainable = [name for name in self.leaf_names if name not in self._untrained]
        for name in self.frozen:
            if name not in trainable:
                raise errors.unknown_name('parameter in adapter.frozen', name, trainable)
        has_trainable = set(self.frozen) < set(trainable)
        require(
            has_trainable,
            'frozen',
            self.frozen,
            'a proper subset of the parameters, so that at least one is trained',
        )
        last = self.structure.factors[-1]
        # The experts of a run may start from trained LoRAs; see `TrainingConfig.check_start`.
        may_start_trained = type(self.structure) is IndependentExperts and self.has_router
        require(
            last not in self.frozen
            or may_start_trained
            or isinstance(self.structure, DoRA | GOAT | MultiHeadLoRA),
            'frozen',
            self.frozen,
            f'without {last!r}, which starts at zero: the update would stay zero',
        )

    @property
    def num_experts(self) -> int:
        """Number of experts per adapted linear layer."""
        return self.structure.num_experts

    @property
    def has_router(self) -> bool:
        """True if there are several experts, which a router weights."""
        return self.num_experts > 1 and self.structure.is_routed

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have parameters of their own; () if tasks share all of them."""
        return self.structure.tasks if isinstance(self.structure, TaskExperts) else ()

    def layer_experts(self, num_layers: int) -> np.ndarray:
        """Return the number of experts of each layer, (L,) int32.

        Args:
            num_layers: Number of layers of the model, L.

        Raises:
            UserError: The layers cannot be divided into as many equal groups as there are numbers.
        """
        counts = self.experts_per_layer or (self.num_experts,)
        require(
            num_layers % len(counts) == 0,
            'experts_per_layer',
            counts,
            f'as many numbers as divide the {num_layers} layers into equal groups',
        )
        return np.repeat(np.array(counts, np.int32), num_layers // len(counts))

    @property
    def scale(self) -> float:
        """Scale of the update: α / rank, or α / √rank if rank-stabilized."""
        rank = self.structure.rank
        return self.alpha / (rank**0.5 if self.rank_stabilized else rank)

    @property
    def num_logits(self) -> int:
        """Number of logits per token of the router of one linear layer; 0 without a router."""
        if not self.has_router:
            return 0
        return self.num_experts + (self.router.scores == 'threshold')

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Names of the adapter parameters of one linear layer, such as 'router' and 'up'."""
        one = Axis('', 1)
        return (*self.axes(one, one), *self.structure.kernel_dependent)

    def missing_task(self) -> errors.UserError:
        """Return the error that tokens have no task, although each task has parameters."""
        return errors.UserError(
            f'The adapter has parameters for each task ({", ".join(self.tasks)}): choose one with '
            '--task=NAME of experiments.generate or experiments.export, or with the argument task '
            'of malora_jax.load.'
        )

    def collection(self, name: str) -> str:
        """Return the Flax collection of a parameter: 'adapter', or 'adapter_frozen'.

        The optimizer trains only the parameters in the collection 'adapter'.

        Args:
            name: Name of the parameter.
        """
        is_trained = name not in (*self.frozen, *self._untrained)
        return 'adapter' if is_trained else 'adapter_frozen'

    @property
    def _untrained(self) -> tuple[str, ...]:
        """Names of parameters that the optimizer never trains."""
        return (*self.structure.frozen, BALANCE_BIAS)

    @property
    def _router_learns_without_gates(self) -> bool:
        """True if the balance loss or sampled selections train the router, or if it is frozen.

        Equal gates require this, because they do not train the router. If every token uses all
        experts, neither does, because the loss is constant.
        """
        router = self.router
        has_loss = router.balance_weight > 0 or router.samples > 0
        return (has_loss and router.top_k < self.num_experts) or 'router' in self.frozen

    def axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of each low-rank factor, and of the router's parameters if there is one.

        Args:
            inputs: Input axis of the linear layer, size D.
            outputs: Output axis of the linear layer, size F.

        Returns:
            Axes of each parameter, by its name.
        """
        factors = self.structure.leaf_axes(inputs, outputs)
        if not self.has_router:
            return factors
        first = factors[self.structure.factors[0]]
        input_axis = inputs if self.router.input == 'x' else first[-1]
        return self.router.axes(input_axis, self.structure.expert_axis) | factors

    def initialize(self, key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        """Initialize the adapter parameters of one linear layer.

        Args:
            key: Random key.
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.

        Returns:
            Float32 arrays by parameter name, without the parameters that depend on the frozen
            kernel (`structure.kernel_dependent`).
        """
        router_key, key = jax.random.split(key)
        structure, initialization = self.structure, self.initialization
        leaves = structure.initialize(key, inputs, outputs, initialization.beta)
        if initialization.identical:
            leaves |= {
                name: jnp.broadcast_to(leaves[name][:1], leaves[name].shape)
                for name in structure.expert_input_factors
            }
        if initialization.is_sparse:
            nonzeros = max(1, inputs * self.router.top_k // self.num_experts)
            leaves[structure.factors[0]] = initializers.sparse_normal(
                key, inputs, self.num_experts, nonzeros
            )
        if self.has_router:
            router_inputs = inputs if self.router.input == 'x' else structure.subspace_rank
            leaves |= self.router.initialize(router_key, router_inputs, self.num_experts)
        return leaves

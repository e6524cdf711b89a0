"""Flat settings of adapters, as in section `adapter` of config files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import errors
from malora_jax.adapters import structures
from malora_jax.adapters.base_structure import Structure, SubspaceStructure, require
from malora_jax.adapters.comol import CoMoL
from malora_jax.adapters.config import DEFAULT_TARGETS, AdapterConfig, Initialization
from malora_jax.adapters.d2mora import D2MoRA
from malora_jax.adapters.goat import GOAT
from malora_jax.adapters.heads import MultiHeadLoRA
from malora_jax.adapters.rank_experts import RankExperts
from malora_jax.adapters.routers import RouterConfig
from malora_jax.adapters.task_experts import TaskExperts

# Structures with a subspace of `shared_rank` dimensions, by the value of `adapter.subspace`.
SUBSPACES: dict[str, type[Structure]] = {
    'down': structures.SharedDown,
    'own': structures.IndependentSubspaces,
    'up': structures.SharedUp,
    'heads': structures.HydraLoRA,
    'tails': structures.ALoRA,
    'both': CoMoL,
    'ranks': RankExperts,
    'tasks': TaskExperts,
    'summed_heads': MultiHeadLoRA,
}
# Initial values of the experts, values of `adapter.start`.
STARTS = ('random', 'svd', 'sparse')


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """Flat adapter settings: section `adapter` of a config, also in stored files.

    `build` turns them into an `AdapterConfig`:

        adapter = AdapterSettings(num_experts=8, top_k=2, rank=8, alpha=16.0).build()

    Attributes:
        num_experts: Number of experts per adapted linear layer, N. One expert has no router.
        top_k: Number of active experts per token, K.
        rank: Rank of one expert (r; r̄ for MALoRA).
        alpha: LoRA's α. The update is multiplied by α / rank.
        shared_rank: Dimensions of the subspace of a linear layer, d. 0 = no subspace: each expert
            has its own down-projection and up-projection, and no core.
        subspace: Kind of subspace. 'down': all experts share the down-projection S_A, and each has
            a core P_t (MALoRA). 'own': each expert has a subspace of d / N dimensions and a core
            ("w/o shared S_A" in Table 3 of the MALoRA paper). 'up': all experts share the
            up-projection S_B ("decomposing B_t" in Table 3). The other kinds are not in the paper,
            and `shared_rank` must equal `rank` with all but 'ranks'. 'heads': all experts share the
            down-projection A, without cores (HydraLoRA). 'tails': all experts share the
            up-projection B, without cores (ALoRA). 'both': all experts share A and B, and each has
            a core of its own (CoMoL; MoSLoRA with a single expert). 'ranks': each of the ranks of
            one LoRA is an expert (SMoRA, FlyLoRA); then `rank` is 1, and `shared_rank` equals
            `num_experts`. 'tasks': all experts share A and are weighted by the task of the token,
            and each task has a core (MTL-LoRA). 'summed_heads': all experts share A and are added
            up without a router (M-LoRA).
        rank_stabilized: Whether the update is multiplied by α / √rank instead (rsLoRA).
        magnitude: Whether the columns of W + (α/r) B A are scaled to trained lengths (DoRA); only
            for a single expert.
        beta: β of eq. (9) and (10). S_A starts multiplied by β, and each P_t divided by β.
        start: Initial values of the experts: 'random'; or 'svd', singular directions of the frozen
            kernel, a different part for each expert, whose mean update is subtracted as a frozen
            residual (GOAT, arXiv 2502.16894). With 'svd' and `width_scale`, the update is
            also multiplied by the square root of the number of inputs.
        identical_start: Whether all experts start with the same values: the down-projection or
            core of every expert is initialized as a copy of the first expert's ("same A_t" in
            Table 3).
        dropout: Dropout rate at the input of the down-projection, in training only.
        balance_weight: Coefficient of the load-balancing loss.
        renormalize: Whether the gates of the top-k experts are scaled to sum to one. The paper does
            not scale them.
        equal_gates: Whether the top-k experts get gates of 1/K each, whatever their probabilities.
            The router then learns from the load-balancing loss alone, or from `samples`.
        frozen: Names of the parameters that are not trained.
        targets: Names of the adapted linear layers.
        dispatch: Whether tokens are sorted by expert and sent only to their top-k experts, as in
            the paper. Otherwise every token is multiplied with all experts, and the gates outside
            the top k are zero.
        router_input: Input of the router: 'x', the input of the linear layer; or 'first', the
            down-projected input, for experts that share their down-projection.
        experts_per_layer: Number of experts in each of several equal groups of layers, from the
            first to the last: (2, 4, 6, 8) for two in the first quarter of the layers, up to eight
            in the last (MoLA, arXiv 2402.08562). The largest must be `num_experts`. () for
            `num_experts` in all layers.
        alignment_weight: Coefficient of the alignment loss, which brings the down-projected inputs
            of different tasks closer to each other (Align-LoRA, arXiv 2508.05078); 0 for none.
        scores: Scores by which the router chooses experts, and which become gates: 'softmax' of the
            logits; 'absolute', the softmax of their absolute values (Arrow); 'sigmoid' of each
            logit (SMoRA); 'threshold', the softmax minus a trained threshold, for the experts that
            are above it (AdaMoLE); or 'magnitude', the absolute value of each entry of A x, without
            a router weight (FlyLoRA).
        gates_sum_to_k: Whether the gates, with `renormalize` or `equal_gates`, sum to K instead of
            one, so that their mean over the chosen experts is one (SMoRA, FlyLoRA).
        bias_rate: Change per step of a bias that balances the load of the experts without a
            gradient: it is added to the scores when experts are chosen (SMoRA); 0 for no bias.
        samples: Number of selections of experts that a training step samples for each token, M: 0,
            or at least 2. The router then learns from the differences between their losses (ReMix,
            arXiv 2603.10160); this requires `equal_gates`. A step costs M times as much.
        num_up_experts: Number of up-projections, if a second router weights them separately from
            the down-projections, whose number is then `num_experts` (D²MoRA); 0 without a second
            router.
        similarity_weight: Coefficient of the similarity loss, the sum of the absolute cosines
            between the experts' matrices (D²MoRA); 0 for none.
        tasks: Names of the tasks that have parameters of their own, in the order of these
            parameters, if `subspace` is 'tasks'. A run replaces () by the tasks that it is trained
            on.
        task_temperature: Temperature τ, by which the weights of a task are divided before the
            softmax, if `subspace` is 'tasks'.
        bias_in_gates: Whether the bias of `bias_rate` is also part of the gates: the gate of an
            expert is then the score that chooses it, as in SMoRA's published code.
        bias_target: Number with which the bias of `bias_rate` compares the number of tokens of an
            expert: 'mean', the mean over the experts; or 'share', K / N, as in FlyLoRA's published
            code: the bias of every expert that got a token then falls.
        balance_scores: Scores in the load-balancing loss: 'probability'; or 'distance', that of the
            probability from the threshold, if `scores` is 'threshold'. The load is then divided by
            the number of tokens, as in AdaMoLE's published code.
        width_scale: Whether the update grows with the square root of the number of inputs, if
            `start` is 'svd'. False is the scale α / rank of GOAT's published scripts.
        head_dropout: Dropout rate of A x, with a mask for each expert, in training only, if
            `subspace` is 'summed_heads'.
        dropout_masks: Masks of `dropout`: 'shared', one for all experts; or 'expert', one for each
            expert, if experts have their own down-projections, as in the published code of ALoRA,
            AdaMoLE, D²MoRA and GOAT.
        router_dropout: Whether the router reads the input after dropout, in training, as in SMoRA's
            published code.
        core_dropout: Dropout rate of the merged core of each token and of its product with A x, in
            training only, if `subspace` is 'both'. In CoMoL's published code, it equals `dropout`.

    Raises:
        UserError: A value has the wrong type.
    """

    num_experts: int
    top_k: int
    rank: int
    alpha: float
    shared_rank: int = 0
    subspace: str = 'down'
    rank_stabilized: bool = False
    magnitude: bool = False
    beta: float = 1.0
    start: str = 'random'
    identical_start: bool = False
    dropout: float = 0.05
    balance_weight: float = 0.01
    renormalize: bool = False
    equal_gates: bool = False
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = DEFAULT_TARGETS
    dispatch: bool = False
    router_input: str = 'x'
    experts_per_layer: tuple[int, ...] = ()
    alignment_weight: float = 0.0
    scores: str = 'softmax'
    gates_sum_to_k: bool = False
    bias_rate: float = 0.0
    samples: int = 0
    num_up_experts: int = 0
    similarity_weight: float = 0.0
    tasks: tuple[str, ...] = ()
    task_temperature: float = 1.0
    bias_in_gates: bool = False
    bias_target: str = 'mean'
    balance_scores: str = 'probability'
    width_scale: bool = True
    head_dropout: float = 0.0
    dropout_masks: str = 'shared'
    router_dropout: bool = False
    core_dropout: float = 0.0

    def __post_init__(self):
        errors.check_types('adapter', self)

    def build(self) -> AdapterConfig:
        """Return the adapter configuration with these settings.

        Raises:
            UserError: A field is unknown, out of range, or contradicts another field.
        """
        require(
            not (self.renormalize and self.equal_gates),
            'renormalize',
            True,
            'False with equal_gates, whose gates sum to one already',
        )
        gates = 'equal' if self.equal_gates else 'renormalized' if self.renormalize else 'softmax'
        return AdapterConfig(
            structure=self._structure(),
            router=RouterConfig(
                self.top_k,
                self.router_input,
                gates,
                self.balance_weight,
                self.scores,
                self.gates_sum_to_k,
                self.bias_rate,
                self.samples,
                self.bias_in_gates,
                self.bias_target,
                self.balance_scores,
                self.router_dropout,
            ),
            alpha=self.alpha,
            rank_stabilized=self.rank_stabilized,
            initialization=Initialization(
                self.beta, self.identical_start, is_sparse=self.start == 'sparse'
            ),
            dropout=self.dropout,
            frozen=self.frozen,
            targets=self.targets,
            dispatch=self.dispatch,
            experts_per_layer=self.experts_per_layer,
            alignment_weight=self.alignment_weight,
            similarity_weight=self.similarity_weight,
            dropout_masks=self.dropout_masks,
        )

    def _structure(self) -> Structure:
        if self.subspace not in SUBSPACES:
            raise errors.unknown_name('adapter.subspace', self.subspace, SUBSPACES)
        require(
            self.shared_rank != 0 or self.subspace == 'down',
            'shared_rank',
            self.shared_rank,
            f'positive if subspace is {self.subspace!r}',
        )
        require(
            not self.magnitude or (self.num_experts == 1 and self.shared_rank == 0),
            'magnitude',
            self.magnitude,
            'False if num_experts > 1 or shared_rank > 0: the length of a column would depend '
            'on the token',
        )
        require(
            (not self.tasks and self.task_temperature == 1) or self.subspace == 'tasks',
            'tasks' if self.tasks else 'task_temperature',
            self.tasks or self.task_temperature,
            f"{'()' if self.tasks else '1.0'} unless subspace is 'tasks'",
        )
        for field, subspace in (('head_dropout', 'summed_heads'), ('core_dropout', 'both')):
            rate = getattr(self, field)
            description = f'0.0 unless subspace is {subspace!r}'
            require(rate == 0 or self.subspace == subspace, field, rate, description)
        if self.start not in STARTS:
            raise errors.unknown_name('adapter.start', self.start, STARTS)
        require(
            self.start != 'svd' or not (self.magnitude or self.shared_rank or self.identical_start),
            'start',
            self.start,
            "'random' with shared_rank > 0, magnitude or identical_start",
        )
        require(
            self.width_scale or self.start == 'svd',
            'width_scale',
            False,
            "True unless start is 'svd'",
        )
        require(
            self.num_up_experts == 0 or (self.shared_rank == 0 and self.start != 'svd'),
            'num_up_experts',
            self.num_up_experts,
            "0 if shared_rank > 0 or start is 'svd': a second router needs own up-projections",
        )
        if self.num_up_experts:
            return D2MoRA(self.num_experts, self.rank, self.num_up_experts)
        if self.magnitude:
            return structures.DoRA(rank=self.rank)
        if self.start == 'svd':
            return GOAT(self.num_experts, self.rank, self.width_scale)
        if self.shared_rank == 0:
            return structures.IndependentExperts(self.num_experts, self.rank)
        kind = SUBSPACES[self.subspace]
        if issubclass(kind, SubspaceStructure):
            return kind(self.num_experts, self.rank, self.shared_rank)
        field = 'num_experts' if kind is RankExperts else 'rank'
        expected = getattr(self, field)
        description = f'equal to {field} ({expected}) if subspace is {self.subspace!r}'
        require(self.shared_rank == expected, 'shared_rank', self.shared_rank, description)
        if kind is TaskExperts:
            return TaskExperts(self.num_experts, self.rank, self.tasks, self.task_temperature)
        if kind is MultiHeadLoRA:
            return MultiHeadLoRA(self.num_experts, self.rank, self.head_dropout)
        if kind is CoMoL:
            return CoMoL(self.num_experts, self.rank, self.core_dropout)
        return kind(self.num_experts, self.rank)


def settings_of(adapter: AdapterConfig) -> AdapterSettings:
    """Return the flat settings of an adapter, the inverse of `AdapterSettings.build`."""
    structure, router = adapter.structure, adapter.router
    start = 'sparse' if adapter.initialization.is_sparse else 'random'
    if isinstance(structure, GOAT):
        start = 'svd'
    subspaces = {kind: name for name, kind in SUBSPACES.items()}
    return AdapterSettings(
        num_experts=adapter.num_experts,
        top_k=router.top_k,
        rank=structure.rank,
        alpha=adapter.alpha,
        shared_rank=structure.subspace_rank,
        subspace=subspaces.get(type(structure), 'down'),
        rank_stabilized=adapter.rank_stabilized,
        magnitude=isinstance(structure, structures.DoRA),
        beta=adapter.initialization.beta,
        start=start,
        identical_start=adapter.initialization.identical,
        dropout=adapter.dropout,
        balance_weight=router.balance_weight,
        renormalize=router.gates == 'renormalized',
        equal_gates=router.gates == 'equal',
        frozen=adapter.frozen,
        targets=adapter.targets,
        dispatch=adapter.dispatch,
        router_input=router.input,
        experts_per_layer=adapter.experts_per_layer,
        alignment_weight=adapter.alignment_weight,
        scores=router.scores,
        gates_sum_to_k=router.sum_to_k,
        bias_rate=router.bias_rate,
        samples=router.samples,
        num_up_experts=structure.num_up_experts if isinstance(structure, D2MoRA) else 0,
        similarity_weight=adapter.similarity_weight,
        tasks=adapter.tasks,
        task_temperature=structure.temperature if isinstance(structure, TaskExperts) else 1.0,
        bias_in_gates=router.bias_in_gates,
        bias_target=router.bias_target,
        balance_scores=router.balance_scores,
        width_scale=structure.width_scale if isinstance(structure, GOAT) else True,
        head_dropout=structure.head_dropout if isinstance(structure, MultiHeadLoRA) else 0.0,
        dropout_masks=adapter.dropout_masks,
        router_dropout=router.after_dropout,
        core_dropout=structure.core_dropout if isinstance(structure, CoMoL) else 0.0,
    )


def migrate_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate stored fields of `AdapterSettings` to the current format.

    Args:
        fields: Values by field. Before format 2 of `config.json`, `dispatch` was a string: the name
            of the matrix product that dispatch used, or '' without dispatch.

    Returns:
        Values by field, with a bool for `dispatch`.
    """
    dispatch = fields.get('dispatch')
    return {**fields, 'dispatch': bool(dispatch)} if isinstance(dispatch, str) else {**fields}


def replace_settings(adapter: AdapterConfig, **overrides: Any) -> AdapterConfig:
    """Return an adapter with some settings replaced.

    Args:
        adapter: Adapter configuration.
        **overrides: New values of fields of `AdapterSettings`.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another field.
    """
    return dataclasses.replace(settings_of(adapter), **overrides).build()


def with_tasks(adapter: AdapterConfig, tasks: Sequence[str]) -> AdapterConfig:
    """Return an adapter with parameters for the given tasks, if its structure has them for tasks.

    Args:
        adapter: Adapter configuration.
        tasks: Names of the tasks that the adapter is trained on, in their order.

    Raises:
        UserError: The adapter has other tasks already.
    """
    if not isinstance(adapter.structure, TaskExperts):
        return adapter
    names = tuple(tasks)
    description = f'(), or {names}, the tasks of the data in their order'
    require(adapter.tasks in ((), names), 'tasks', adapter.tasks, description)
    return replace_settings(adapter, tasks=names)

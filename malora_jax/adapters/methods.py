"""Methods: their settings as rows of a table, and the flat form that configs and files have."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malora_jax import errors
from malora_jax.adapters import structures
from malora_jax.adapters.config import TARGETS, AdapterConfig, Initialization
from malora_jax.adapters.routers import Router
from malora_jax.adapters.structures import Heads, Structure, SubspaceStructure, require

# Structures with a subspace of `shared_rank` dimensions, by `AdapterSettings.subspace`.
SUBSPACES: dict[str, type[SubspaceStructure] | type[Heads]] = {
    'down': structures.SharedDown,
    'own': structures.IndependentSubspaces,
    'up': structures.SharedUp,
    'heads': Heads,
}


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter as fields of a config, `config.adapter`, and of stored files.

    Attributes:
        num_experts: N, experts per adapted linear. One expert has no router.
        top_k: K, the number of active experts per token.
        rank: Rank of one expert (r; r̄ for MALoRA).
        alpha: α; the update is multiplied by α / rank.
        shared_rank: d, dimensions of the subspace of a linear. 0 means that there is none: each
            expert has its own down-projection and up-projection, and no core.
        subspace: Which subspace there is. 'down': S_A, shared by all experts, with one core P_t
            each (MALoRA). 'own': each expert has d / N dimensions and a core ("w/o shared S_A").
            'up': S_B, shared on the output's side ("decomposing B_t"). 'heads': A is shared and
            there are no cores (HydraLoRA).
        rank_stabilized: Whether the update is multiplied by α / √rank instead (rsLoRA).
        magnitude: Whether the columns of W + (α/r) B A are scaled to trained lengths (DoRA); for a
            single expert.
        beta: See `Initialization`.
        identical_start: See `Initialization.identical`.
        dropout: Probability of dropping an input of the first factor in training.
        balance_weight: Coefficient of the balance loss.
        renormalize: Whether the K kept gates are scaled to sum to one. The paper does not do so.
        equal_gates: Whether the K chosen experts count 1/K each, whatever their probabilities: a
            control (ReMix, 2603.10160). The router then learns from the balance loss alone.
        frozen: Names of the leaves that do not train.
        targets: Names of the adapted linears.
        dispatch: Whether tokens are sorted by expert, as in the paper.
        router_input: Input of the router, see `routers.INPUTS`.

    Raises:
        UserError: A value of another type.
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
    identical_start: bool = False
    dropout: float = 0.05
    balance_weight: float = 0.01
    renormalize: bool = False
    equal_gates: bool = False
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS
    dispatch: bool = False
    router_input: str = 'x'

    def __post_init__(self):
        errors.check_types('adapter', self)

    def build(self) -> AdapterConfig:
        """Compose the adapter.

        Raises:
            UserError: A field is out of its range, or contradicts another.
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
            router=Router(self.top_k, self.router_input, gates, self.balance_weight),
            alpha=self.alpha,
            rank_stabilized=self.rank_stabilized,
            initialization=Initialization(self.beta, self.identical_start),
            dropout=self.dropout,
            frozen=self.frozen,
            targets=self.targets,
            dispatch=self.dispatch,
        )

    def _structure(self) -> Structure:
        if self.subspace not in SUBSPACES:
            raise errors.unknown_name('adapter.subspace', self.subspace, SUBSPACES)
        require(
            self.shared_rank != 0 or self.subspace == 'down',
            'shared_rank',
            self.shared_rank,
            f'positive where subspace is {self.subspace!r}',
        )
        require(
            not self.magnitude or (self.num_experts == 1 and self.shared_rank == 0),
            'magnitude',
            self.magnitude,
            'False where num_experts > 1 or shared_rank > 0: the length of a column would depend '
            'on the token',
        )
        if self.magnitude:
            return structures.DoRA(rank=self.rank)
        if self.shared_rank == 0:
            return structures.IndependentExperts(self.num_experts, self.rank)
        kind = SUBSPACES[self.subspace]
        if issubclass(kind, Heads):
            description = f'rank = {self.rank}, as heads share A'
            require(self.shared_rank == self.rank, 'shared_rank', self.shared_rank, description)
            return kind(self.num_experts, self.rank)
        return kind(self.num_experts, self.rank, self.shared_rank)


def settings_of(adapter: AdapterConfig) -> AdapterSettings:
    """Return the flat settings from which `AdapterSettings.build` makes an adapter."""
    structure, router = adapter.structure, adapter.router
    subspaces: dict[type[Structure], str] = {kind: name for name, kind in SUBSPACES.items()}
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
        identical_start=adapter.initialization.identical,
        dropout=adapter.dropout,
        balance_weight=router.balance_weight,
        renormalize=router.gates == 'renormalized',
        equal_gates=router.gates == 'equal',
        frozen=adapter.frozen,
        targets=adapter.targets,
        dispatch=adapter.dispatch,
        router_input=router.input,
    )


def stored_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `AdapterSettings` from a file that an earlier version may have written.

    Args:
        fields: Values by field. Before format 2 of `config.json`, `dispatch` was the name of the
            product that dispatch used, or '' without dispatch.
    """
    dispatch = fields.get('dispatch')
    return {**fields, 'dispatch': bool(dispatch)} if isinstance(dispatch, str) else {**fields}


def changed(adapter: AdapterConfig, **overrides: Any) -> AdapterConfig:
    """Return an adapter with other values of some fields of `AdapterSettings`."""
    return dataclasses.replace(settings_of(adapter), **overrides).build()


_EIGHT = dict(num_experts=8, top_k=2)
# Without a choice of experts, loads are equal and a balance loss would be constant.
_DENSE = dict(num_experts=8, top_k=8, balance_weight=0.0)

# Tables 8 and 9 of the paper, then the ablations of Table 3. α is 2 · rank in every row; where the
# paper does not say, too.
METHODS: dict[str, dict[str, Any]] = {
    'lora': dict(num_experts=1, top_k=1, rank=64),
    'dora': dict(num_experts=1, top_k=1, rank=64, magnitude=True),
    'asylora': dict(num_experts=1, top_k=1, rank=128, frozen=('down',)),
    'molora': dict(_EIGHT, rank=8),
    'moasylora': dict(_EIGHT, rank=16, frozen=('down',)),
    'malora': dict(_EIGHT, rank=12, shared_rank=32),
    'malora_small': dict(_EIGHT, rank=8, shared_rank=22),
    'molora_r12': dict(_EIGHT, rank=12),
    'molora_same_down': dict(_EIGHT, rank=12, identical_start=True),
    'malora_fixed_shared': dict(_EIGHT, rank=16, shared_rank=32, frozen=('shared_down',)),
    'malora_symmetric': dict(_EIGHT, rank=8, shared_rank=64),
    'malora_unshared': dict(_EIGHT, rank=12, shared_rank=32, subspace='own'),
    'malora_fixed_core': dict(_EIGHT, rank=12, shared_rank=32, frozen=('core',)),
    'malora_shared_up': dict(_EIGHT, rank=12, shared_rank=32, subspace='up'),
    # Not in the paper. HydraLoRA's own script has 4 heads of rank 4; these are MALoRA's number and
    # rank.
    'hydralora': dict(_DENSE, rank=12, shared_rank=12, subspace='heads'),
    # The same as molora and malora, computed as the paper does.
    'molora_dispatch': dict(_EIGHT, rank=8, dispatch=True),
    'malora_dispatch': dict(_EIGHT, rank=12, shared_rank=32, dispatch=True),
}


def method(name: str, **overrides: Any) -> AdapterConfig:
    """Return the settings of a named method, with overrides by field of `AdapterSettings`.

    If `rank` is given and `alpha` is not, α stays twice the rank, as in the paper's tables.

    Raises:
        UserError: There is no such method or field, or a value is out of range.
    """
    if name not in METHODS:
        raise errors.unknown_name('method', name, METHODS)
    fields = [field.name for field in dataclasses.fields(AdapterSettings)]
    for key in overrides:
        if key not in fields:
            raise errors.unknown_name('adapter field', key, fields)
    settings = METHODS[name] | overrides
    rank = settings['rank']
    # A rank that is no number is refused with the other fields.
    alpha = 2.0 * rank if isinstance(rank, int) else 1.0
    return AdapterSettings(**{'alpha': alpha, **settings}).build()

"""What an adapter is: one frozen dataclass, and the paper's methods as rows of a table."""

import dataclasses
from typing import Any

from malora_jax import errors

LINEARS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')

# The factors of an expert's update where there is a subspace of `shared_rank` dimensions, in the
# order in which they are applied: what each choice of `AdapterConfig.subspace` means.
SUBSPACES = {
    'down': ('shared_down', 'core', 'up'),
    'own': ('down', 'core', 'up'),
    'up': ('down', 'core', 'shared_up'),
    'heads': ('shared_down', 'up'),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The settings of one member of the family Δ(x) = Σ_t G_t(x) · up_t · core_t · down_t(x).

    Attributes:
        num_experts: N, experts per adapted linear. One expert has no router.
        top_k: K, experts active per token.
        rank: rank of one expert (r; r̄ for MALoRA).
        shared_rank: d, dimensions of the subspace of a linear; 0 = none: each expert has a down-
            and an up-projection of its own, and no core.
        subspace: whose the subspace is, if there is one. 'down': S_A, shared by all experts, with
            a core P_t each (MALoRA). 'own': each expert has d / N dimensions and a core ("w/o
            shared S_A"). 'up': S_B, shared on the output's side ("decomposing B_t").
            'heads': A is shared and there are no cores (HydraLoRA, Tian et al. 2024).
        alpha: α; the update is multiplied by α / rank.
        rank_stabilized: whether the update is multiplied by α / √rank instead (rsLoRA,
            Kalajdzievski 2023).
        magnitude: whether the columns of W + (α/r) B A are scaled to trained lengths (DoRA, Liu et
            al. 2024); for a single expert.
        beta: β of eq. (9), (10): balance between the shared S_A and the experts' own P_t.
        identical_start: whether the down-projections of a linear's experts start from one draw
            ("same A_t" in Table 3); a control elsewhere.
        dropout: probability of dropping an input of the down-projection, in training.
        balance_weight: coefficient of the balance loss (0.01 in the paper's tables).
        renormalize: whether the K kept gates are scaled to sum to one. The paper does not.
        equal_gates: whether the K chosen experts count 1/K each, whatever their probabilities: a
            control (ReMix, 2603.10160). The router then learns from the balance loss alone.
        frozen: names of the leaves that do not train, among `leaves`. With ('router',) the
            routing stays random: a control.
        targets: names of the adapted linears, among `LINEARS`.
        dispatch: whether tokens are sorted by expert, as in the paper, and not all experts
            computed in rank space; it gives the same and is there to be compared with.

    Raises:
        UserError: a field is out of its range.
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
    targets: tuple[str, ...] = ('q', 'k', 'v', 'gate', 'up', 'down')
    dispatch: bool = False

    def __post_init__(self):
        if isinstance(self.dispatch, str):  # Of earlier runs: '', or how dispatch multiplied.
            object.__setattr__(self, 'dispatch', bool(self.dispatch))
        errors.check_types('adapter', self)

        def require(right: bool, field: str, description: str) -> None:
            if not right:
                raise errors.out_of_range(f'adapter.{field}', getattr(self, field), description)

        for field in ('num_experts', 'top_k', 'rank'):
            require(getattr(self, field) >= 1, field, 'at least 1')
        require(
            self.top_k <= self.num_experts, 'top_k', f'at most num_experts = {self.num_experts}'
        )
        if self.subspace not in SUBSPACES:
            raise errors.unknown_name('adapter.subspace', self.subspace, SUBSPACES)
        require(
            self.shared_rank != 0 or self.subspace == 'down',
            'shared_rank',
            f'positive where subspace is {self.subspace!r}',
        )
        require(
            not self.identical_start or (self.has_router and self.factors != SUBSPACES['heads']),
            'identical_start',
            'False where the experts have no down-projections of their own',
        )
        if self.shared_rank:
            right, description = {
                'own': (
                    self.shared_rank > 0 and self.shared_rank % self.num_experts == 0,
                    f'0 or a multiple of num_experts = {self.num_experts}',
                ),
                'heads': (self.shared_rank == self.rank, f'rank = {self.rank}, as heads share A'),
            }.get(
                self.subspace, (self.shared_rank >= self.rank, f'0 or at least rank = {self.rank}')
            )
            require(right, 'shared_rank', description)
        require(
            not self.magnitude or (self.num_experts == 1 and self.shared_rank == 0),
            'magnitude',
            'False where num_experts > 1 or shared_rank > 0: the length of a column would depend '
            'on the token',
        )
        require(
            not (self.renormalize and self.top_k == 1),
            'renormalize',
            'False when top_k = 1: the one gate would always be 1 and the router get no gradient',
        )
        require(
            not (self.renormalize and self.equal_gates),
            'renormalize',
            'False with equal_gates, whose gates sum to one already',
        )
        require(self.alpha > 0, 'alpha', 'positive')
        require(self.beta > 0, 'beta', 'positive')
        require(0 <= self.dropout < 1, 'dropout', 'at least 0 and below 1')
        require(self.balance_weight >= 0, 'balance_weight', 'at least 0')
        for name in self.frozen:
            if name not in self.leaves:
                raise errors.unknown_name('leaf in adapter.frozen', name, self.leaves)
        require(set(self.frozen) < set(self.leaves), 'frozen', 'short of every leaf')
        require(
            self.factors[-1] not in self.frozen or self.magnitude,
            'frozen',
            f'without {self.factors[-1]!r}, which starts at zero: the update would stay zero',
        )
        require(
            not self.equal_gates or (self.has_router and self._router_learns_from_balance),
            'equal_gates',
            "False, or 'router' frozen: with equal gates, a router learns from the balance loss "
            'alone, and here gets no gradient',
        )
        require(
            not self.dispatch
            or (self.has_router and self.factors in (('down', 'up'), SUBSPACES['down'])),
            'dispatch',
            "False but for routed experts whose subspace, if there is one, is 'down'",
        )
        require(len(self.targets) > 0, 'targets', 'at least one linear')
        for name in self.targets:
            if name not in LINEARS:
                raise errors.unknown_name('linear in adapter.targets', name, LINEARS)

    @property
    def scale(self) -> float:
        """α / rank, or α / √rank: the factor of the update."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the leaves whose product an expert is, from input to output."""
        return SUBSPACES[self.subspace] if self.shared_rank else ('down', 'up')

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves that an adapted linear has."""
        router = ('router',) if self.has_router else ()
        return (*router, *self.factors, *(('magnitude',) if self.magnitude else ()))

    @property
    def _router_learns_from_balance(self) -> bool:
        """Whether the balance loss moves the router; with all experts chosen it is constant."""
        moves = self.balance_weight > 0 and self.top_k < self.num_experts
        return moves or 'router' in self.frozen

    @property
    def has_router(self) -> bool:
        """Whether tokens are routed: a single expert is always chosen."""
        return self.num_experts > 1

    @property
    def is_plain(self) -> bool:
        """Whether the update is B A x for every token: one expert of two factors."""
        return not self.has_router and self.factors == ('down', 'up')


_EIGHT = dict(num_experts=8, top_k=2)

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
    # Not in the paper. A dense router, so loads are equal and a balance loss would be constant.
    # HydraLoRA's own script has 4 heads of rank 4; these are MALoRA's number and rank.
    'hydralora': dict(
        num_experts=8, top_k=8, rank=12, shared_rank=12, subspace='heads', balance_weight=0.0
    ),
    # The same as molora and malora, computed as the paper does.
    'molora_dispatch': dict(_EIGHT, rank=8, dispatch=True),
    'malora_dispatch': dict(_EIGHT, rank=12, shared_rank=32, dispatch=True),
}


def method(name: str, **overrides: Any) -> AdapterConfig:
    """The settings of a named method, with overrides by field.

    Where `rank` is given and `alpha` is not, α stays twice the rank, as in the paper's tables.

    Raises:
        UserError: no such method or field, or a value out of range.
    """
    if name not in METHODS:
        raise errors.unknown_name('method', name, METHODS)
    fields = [field.name for field in dataclasses.fields(AdapterConfig)]
    for key in overrides:
        if key not in fields:
            raise errors.unknown_name('adapter field', key, fields)
    settings = METHODS[name] | overrides
    rank = settings['rank']
    # A rank that is no number is refused with the other fields.
    alpha = 2.0 * rank if isinstance(rank, int) else 1.0
    return AdapterConfig(**({'alpha': alpha} | settings))

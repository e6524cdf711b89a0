"""What an adapter is: one frozen dataclass, and the paper's methods as rows of a table."""

import dataclasses
from typing import Any

from malora_jax import errors

LINEARS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The settings of one member of the family Δ(x) = Σ_t G_t(x) · up_t · core_t · down_t(x).

    Attributes:
        num_experts: N, experts per adapted linear. One expert has no router.
        top_k: K, experts active per token.
        rank: rank of one expert (r; r̄ for MALoRA).
        shared_rank: d, rows of the subspace S_A that all experts of a linear share; 0 = each
            expert has a down-projection of its own and no core.
        alpha: α; the update is multiplied by α / rank.
        beta: β of eq. (9), (10): balance between the shared S_A and the experts' own P_t.
        dropout: probability of dropping an input of the down-projection, in training.
        balance_weight: coefficient of the balance loss (0.01 in the paper's tables).
        renormalize: whether the K kept gates are scaled to sum to one. The paper does not.
        frozen: names of the leaves that do not train, among `leaves`.
        targets: names of the adapted linears, among `LINEARS`.

    Raises:
        UserError: a field is out of its range.
    """

    num_experts: int
    top_k: int
    rank: int
    alpha: float
    shared_rank: int = 0
    beta: float = 1.0
    dropout: float = 0.05
    balance_weight: float = 0.01
    renormalize: bool = False
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = ('q', 'k', 'v', 'gate', 'up', 'down')

    def __post_init__(self):
        errors.check_types('adapter', self)

        def require(right: bool, field: str, description: str) -> None:
            if not right:
                raise errors.out_of_range(f'adapter.{field}', getattr(self, field), description)

        for field in ('num_experts', 'top_k', 'rank'):
            require(getattr(self, field) >= 1, field, 'at least 1')
        require(
            self.top_k <= self.num_experts, 'top_k', f'at most num_experts = {self.num_experts}'
        )
        require(
            self.shared_rank == 0 or self.shared_rank >= self.rank,
            'shared_rank',
            f'0 or at least rank = {self.rank}',
        )
        require(
            not (self.renormalize and self.top_k == 1),
            'renormalize',
            'False when top_k = 1: the one gate would always be 1 and the router get no gradient',
        )
        require(self.alpha > 0, 'alpha', 'positive')
        require(self.beta > 0, 'beta', 'positive')
        require(0 <= self.dropout < 1, 'dropout', 'at least 0 and below 1')
        require(self.balance_weight >= 0, 'balance_weight', 'at least 0')
        for name in self.frozen:
            if name not in self.leaves:
                raise errors.unknown_name('leaf in adapter.frozen', name, self.leaves)
        require(set(self.frozen) < set(self.leaves), 'frozen', 'short of every leaf')
        require(len(self.targets) > 0, 'targets', 'at least one linear')
        for name in self.targets:
            if name not in LINEARS:
                raise errors.unknown_name('linear in adapter.targets', name, LINEARS)

    @property
    def scale(self) -> float:
        """α / rank, the factor of the update."""
        return self.alpha / self.rank

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves that an adapted linear has."""
        router = ('router',) if self.has_router else ()
        return (*router, *(('shared_down', 'core') if self.shared_rank else ('down',)), 'up')

    @property
    def has_router(self) -> bool:
        """Whether tokens are routed: a single expert is always chosen."""
        return self.num_experts > 1


# Tables 8 and 9 of the paper. α is 2 · rank in every row; for MALoRA-Small, where the paper does
# not say, too.
METHODS: dict[str, dict[str, Any]] = {
    'lora': dict(num_experts=1, top_k=1, rank=64),
    'molora': dict(num_experts=8, top_k=2, rank=8),
    'malora': dict(num_experts=8, top_k=2, rank=12, shared_rank=32),
    'malora_small': dict(num_experts=8, top_k=2, rank=8, shared_rank=22),
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

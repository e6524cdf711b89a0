"""AdapterConfig: a structure, a router and the settings that are independent of both."""

import dataclasses

import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import initializers
from malora_jax.adapters.routers import Router
from malora_jax.adapters.structures import Axis, DoRA, Structure, require

LINEARS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
TARGETS = ('q', 'k', 'v', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Settings of the initial values of the factors.

    Attributes:
        beta: β of eq. (9) and (10): balance between the shared S_A and the experts' own P_t.
        identical: Whether the factors that experts have for themselves on the input's side start
            from one draw ("same A_t" in Table 3); a control for other structures.
    """

    beta: float = 1.0
    identical: bool = False

    def __post_init__(self):
        require(self.beta > 0, 'beta', self.beta, 'positive')


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Settings of an adapter; `method` makes them from the name of a method.

    Attributes:
        structure: Factors of the experts, and which of them are shared.
        router: Its settings. They have no effect with a single expert, which every token uses.
        alpha: α; the update is multiplied by α / rank.
        rank_stabilized: Whether the update is multiplied by α / √rank instead (rsLoRA,
            Kalajdzievski 2023).
        initialization: How the factors start.
        dropout: Probability of dropping an input of the first factor in training.
        frozen: Names of the leaves that do not train. With ('router',) the routing stays random: a
            control.
        targets: Names of the adapted linears, from `LINEARS`.
        dispatch: Whether tokens are sorted by expert, as in the paper, instead of computing all
            experts in rank space. The result is the same.

    Raises:
        UserError: Settings that contradict each other.
    """

    structure: Structure
    router: Router
    alpha: float
    rank_stabilized: bool = False
    initialization: Initialization = Initialization()
    dropout: float = 0.05
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS
    dispatch: bool = False

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
            or (self.has_router and bool(self.structure.per_expert)),
            'identical_start',
            True,
            'False where the experts have no down-projections of their own',
        )
        require(self.alpha > 0, 'alpha', self.alpha, 'positive')
        require(0 <= self.dropout < 1, 'dropout', self.dropout, 'at least 0 and below 1')
        self._check_frozen()
        require(
            router.gates != 'equal' or (self.has_router and self._router_learns_from_balance),
            'equal_gates',
            True,
            "False, or 'router' frozen: with equal gates, a router learns from the balance loss "
            'alone, and here gets no gradient',
        )
        require(
            not self.dispatch or (self.has_router and bool(self.structure.dispatched)),
            'dispatch',
            True,
            "False but for routed experts whose subspace, if there is one, is 'down'",
        )
        require(
            router.input == 'x' or self.structure.first_axis != 'expert',
            'router_input',
            router.input,
            "'x' where the experts share no first factor",
        )
        require(len(self.targets) > 0, 'targets', self.targets, 'at least one linear')
        for name in self.targets:
            if name not in LINEARS:
                raise errors.unknown_name('linear in adapter.targets', name, LINEARS)

    def _check_frozen(self) -> None:
        for name in self.frozen:
            if name not in self.leaves:
                raise errors.unknown_name('leaf in adapter.frozen', name, self.leaves)
        trains = set(self.frozen) < set(self.leaves)
        require(trains, 'frozen', self.frozen, 'short of every leaf')
        last = self.structure.factors[-1]
        require(
            last not in self.frozen or isinstance(self.structure, DoRA),
            'frozen',
            self.frozen,
            f'without {last!r}, which starts at zero: the update would stay zero',
        )

    @property
    def num_experts(self) -> int:
        """E, experts per adapted linear."""
        return self.structure.num_experts

    @property
    def has_router(self) -> bool:
        """True if tokens are routed; a single expert is always chosen."""
        return self.num_experts > 1

    @property
    def scale(self) -> float:
        """Factor of the update: α / rank, or α / √rank."""
        rank = self.structure.rank
        return self.alpha / (rank**0.5 if self.rank_stabilized else rank)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves of an adapted linear."""
        one = Axis('', 1)
        return (*self.axes(one, one), *self.structure.extra)

    @property
    def _router_learns_from_balance(self) -> bool:
        """True if the balance loss moves the router; with all experts chosen it is constant."""
        moves = self.router.balance_weight > 0 and self.router.top_k < self.num_experts
        return moves or 'router' in self.frozen

    def axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the router, if there is one, and of each factor.

        Args:
            inputs: D.
            outputs: F.
        """
        factors = self.structure.leaves(inputs, outputs)
        if not self.has_router:
            return factors
        first = factors[self.structure.factors[0]]
        seen = inputs if self.router.input == 'x' else first[-1]
        return {'router': (seen, self.structure.experts)} | factors

    def start(self, key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        """Draw the initial values of the leaves of one linear, float32.

        The paper does not say how W_g starts: Kaiming-uniform, as a linear layer in its framework.

        Args:
            key: Random key.
            inputs: D.
            outputs: F.
        """
        router_key, key = jax.random.split(key)
        structure, initialization = self.structure, self.initialization
        leaves = structure.start(key, inputs, outputs, initialization.beta)
        if initialization.identical:
            leaves |= {
                name: jnp.broadcast_to(leaves[name][:1], leaves[name].shape)
                for name in structure.per_expert
            }
        if self.has_router:
            axes = self.axes(Axis('', inputs), Axis('', outputs))['router']
            shape = tuple(axis.size for axis in axes)
            leaves['router'] = initializers.kaiming_uniform(router_key, shape)
        return leaves

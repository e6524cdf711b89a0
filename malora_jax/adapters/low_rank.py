"""LowRankExperts: the update scale · Δ(x) of one adapted linear, for every structure and router."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import dispatch, products, routers
from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.structures import Axis
from malora_jax.distributed import rules

Leaves = Mapping[str, jax.Array]


class FirstProducts(NamedTuple):
    """The products of an adapter that contract the input of its linear.

    Attributes:
        logits: (N, E) float32, of the router; None if there is none.
        first: (N, Q), the input after dropout times the first factor: S_A x, or A_t x of all
            experts side by side.
        dropped: (N, D), the input after dropout.
    """

    logits: jax.Array | None
    first: jax.Array
    dropped: jax.Array


def first_products(
    config: AdapterConfig, x_ND: jax.Array, dropped_ND: jax.Array, leaves: Sequence[Leaves]
) -> list[FirstProducts]:
    """Compute the first products of all adapters with one input, such as those of q, k and v.

    Args:
        config: Settings of the adapters.
        x_ND: Input of the linears.
        dropped_ND: The same after dropout.
        leaves: Leaves of each adapter.
    """
    structure, x_dtype = config.structure, x_ND.dtype
    weights = [structure.first(each).astype(x_dtype) for each in leaves]
    first = products.joint(dropped_ND, weights, 'rank', structure.first_axis)
    logits: Sequence[jax.Array | None] = [None] * len(leaves)
    if config.has_router:
        highest = jax.lax.Precision.HIGHEST
        of_routers = [each['router'].astype(jnp.float32) for each in leaves]
        if config.router.input == 'x':
            x32_ND = x_ND.astype(jnp.float32)
            logits = products.joint(x32_ND, of_routers, 'router', 'expert', highest)
        else:
            logits = [
                products.saved(
                    jnp.matmul(first_NQ.astype(jnp.float32), router_QE, precision=highest),
                    name='router',
                )
                for first_NQ, router_QE in zip(first, of_routers, strict=True)
            ]
    return [FirstProducts(*both, dropped_ND) for both in zip(logits, first, strict=True)]


class LowRankExperts(nn.Module):
    """A router and low-rank experts that adapt one linear with D inputs and F outputs.

    The leaves are float32, in collection `adapter`, or in `adapter_frozen` if `config.frozen` names
    them: `router` with more than one expert, (D, E) or (Q, E) for the router's input, and the
    factors of `config.structure`.

    Attributes:
        config: Settings of the adapter.
        features: F, the outputs of the linear.
        axes: Logical axis names of the linear's inputs and outputs.
    """

    config: AdapterConfig
    features: int
    axes: tuple[str, str] = ('embed', 'mlp')

    def __call__(
        self,
        x: jax.Array,
        dropped: jax.Array | None = None,
        groups: jax.Array | None = None,
    ) -> jax.Array:
        """Compute scale · Δ(x) if no other linear has the same input.

        Args:
            x: (..., D), the input of the linear.
            dropped: (..., D), the same input after dropout, for the first factor; x by default.
            groups: See `update`, with N the product of x's leading axes.

        Returns:
            (..., F) in the dtype of x.

        Raises:
            UserError: The subspace has more dimensions than the input.
        """
        x_ND = x.reshape(-1, x.shape[-1])
        dropped_ND = x_ND if dropped is None else dropped.reshape(x_ND.shape)
        leaves = self.leaves(x.shape[-1])
        (found,) = first_products(self.config, x_ND, dropped_ND, [leaves])
        return self.update(found, leaves, groups).reshape(*x.shape[:-1], self.features)

    def update(
        self,
        found: FirstProducts,
        leaves: Leaves,
        groups_NG: jax.Array | None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """Compute scale · Δ(x), (N, F) in the dtype of the input.

        The router is applied here, and the structure gets its gates.

        Args:
            found: First products of the input and these leaves.
            leaves: See `leaves`.
            groups_NG: float32, one-hot group (task) of each token, zero for padding. If given,
                `RoutingSums` are sown in collection `routing`, under the name `sums`.
            scale: Factor of the update, () float32; that of the config by default.
        """
        scale = jnp.asarray(self.config.scale if scale is None else scale, found.first.dtype)
        structure, gates_NE = self.config.structure, None
        if found.logits is not None:
            routing = self._route(found.logits, groups_NG)
            if self.config.dispatch:
                return scale * self._dispatched(found, leaves, routing)
            gates_NE = routing.gates
        return structure.update(found.first, leaves, gates_NE, scale)

    def _dispatched(
        self, found: FirstProducts, leaves: Leaves, routing: routers.Routing
    ) -> jax.Array:
        structure = self.config.structure
        first, second = structure.dispatched
        # The paper's saving: S dimensions of a token are dispatched, not D.
        inputs = found.dropped if first == structure.factors[0] else found.first
        return dispatch.update(
            inputs, routing, leaves[first], leaves[second], self.config.router.top_k
        )

    @nn.compact
    def leaves(self, inputs: int) -> dict[str, jax.Array]:
        """Return the router, if there is one, and the factors, by name.

        Args:
            inputs: D.

        Raises:
            UserError: The subspace has more dimensions than the input.
        """
        config, structure, (in_axis, out_axis) = self.config, self.config.structure, self.axes
        if structure.is_subspace_of_inputs and structure.subspace_rank > inputs:
            raise errors.UserError(
                f'adapter.shared_rank is {structure.subspace_rank}; it must be at most {inputs}, '
                f'the input width of linear {"/".join(self.path) or "adapted"}.'
            )

        @functools.cache
        def start() -> dict[str, jax.Array]:
            return config.start(self.make_rng('params'), inputs, self.features)

        leaves = {}
        for name, axes in config.axes(Axis(in_axis, inputs), Axis(out_axis, self.features)).items():
            names = tuple(axis.name for axis in axes)
            collection = 'adapter_frozen' if name in config.frozen else 'adapter'
            boxed = nn.with_logical_partitioning(lambda name=name: start()[name], names)
            value = cast(jax.Array, self.variable(collection, name, boxed).value)
            leaves[name] = rules.gather(value, names)
        return leaves

    def _route(self, logits_NE: jax.Array, groups_NG: jax.Array | None) -> routers.Routing:
        routing = self.config.router.route(logits_NE)
        if groups_NG is not None:
            sums = routers.sum_by_group(routing, groups_NG)
            self.sow('routing', 'sums', sums, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return routing

"""Flax module of the low-rank experts that adapt one linear layer, for every structure."""

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
    """Router logits and down-projected input of one adapter.

    Attributes:
        logits: (N, E) float32, logits of the router; None without a router.
        first: (N, Q), input after dropout times the first factor: S_A x, or A_t x of all experts
            concatenated.
        dropped: (N, D), input after dropout.
    """

    logits: jax.Array | None
    first: jax.Array
    dropped: jax.Array


def first_products(
    config: AdapterConfig, x_ND: jax.Array, dropped_ND: jax.Array, leaves: Sequence[Leaves]
) -> list[FirstProducts]:
    """Compute the first products of all adapters that share one input, such as q, k and v.

    Args:
        config: Adapter configuration.
        x_ND: (N, D), input of the linear layers.
        dropped_ND: (N, D), the same input after dropout.
        leaves: Parameters of each adapter, by name.

    Returns:
        The first products of each adapter, in the order of `leaves`.
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
    """A mixture of low-rank experts with a router, for one linear layer of D inputs and F outputs.

    The module computes the update scale · Δ(x) that is added to the output of the frozen layer:

        experts = LowRankExperts(method('malora'), features=4096)
        variables = experts.init(jax.random.key(0), x)  # x: (..., D)
        update = experts.apply(variables, x)  # (..., 4096)

    Parameters are float32. They are the factors of `config.structure` and, with several experts,
    `router`, (D, E), or (Q, E) if the router reads the down-projected input. They are in collection
    `adapter`, or in `adapter_frozen` if `config.frozen` names them.

    Attributes:
        config: Adapter configuration.
        features: Number of outputs of the linear layer, F.
        axes: Logical axis names of the inputs and outputs of the linear layer.
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
        """Return scale · Δ(x).

        For linear layers that share their input, `first_products` and `update` are faster.

        Args:
            x: (..., D), input of the linear layer.
            dropped: (..., D), the same input after dropout, for the first factor; x by default.
            groups: (N, G) float32, group of each token as in `update`, where N is the product of
                the leading axes of x.

        Returns:
            (..., F) in the dtype of x.

        Raises:
            UserError: The shared subspace has more dimensions than the input.
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
        """Route the tokens, and return scale · Δ(x).

        Args:
            found: First products of the input and these parameters.
            leaves: Parameters by name, as the method `leaves` returns them.
            groups_NG: (N, G) float32, one-hot group (task) of each token; zeros for padding. If
                given, `RoutingSums` are sown in collection `routing` under the name `sums`.
            scale: () float32, scale of the update; `config.scale` by default.

        Returns:
            (N, F) in the dtype of the input.
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
        # As in the paper, a shared S_A is applied before dispatch, which then moves S numbers per
        # token instead of D.
        inputs = found.dropped if first == structure.factors[0] else found.first
        return dispatch.update(
            inputs, routing, leaves[first], leaves[second], self.config.router.top_k
        )

    @nn.compact
    def leaves(self, inputs: int) -> dict[str, jax.Array]:
        """Create or read the parameters: the router, if there is one, and the factors.

        Args:
            inputs: Number of inputs of the linear layer, D.

        Returns:
            Float32 parameters by name.

        Raises:
            UserError: The shared subspace has more dimensions than the input.
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

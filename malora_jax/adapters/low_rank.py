"""LowRankExperts: the update (α / rank) · Δ(x) of one adapted linear, for the whole family."""

import functools
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import compute, dispatch, initializers, router
from malora_jax.adapters.config import AdapterConfig
from malora_jax.distributed import rules


class LowRankExperts(nn.Module):
    """A router and low-rank experts over one linear with D inputs and F outputs.

    Leaves, float32, in collection `adapter`, or `adapter_frozen` if named in `config.frozen`:
    `router` (D, E) with more than one expert, and the factors that `config.factors` names:

    * without a subspace: `down` (E, D, R) and `up` (E, R, F);
    * 'down': `shared_down` (D, S), `core` (E, S, R) and `up`;
    * 'own': `down` (E, D, S / E), `core` (E, S / E, R) and `up`;
    * 'up': `down`, `core` (E, R, S) and `shared_up` (S, F);
    * 'heads': `shared_down` (D, S = R) and `up`.

    The last factor starts at zero.

    Attributes:
        config: the settings.
        features: F, the outputs of the linear.
        axes: logical axis names of the linear's inputs and outputs.
    """

    config: AdapterConfig
    features: int
    axes: tuple[str, str] = ('embed', 'mlp')

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        dropped: jax.Array | None = None,
        groups: jax.Array | None = None,
    ) -> jax.Array:
        """The update to add to the linear's output.

        Args:
            x: (..., D), the input of the linear; the router sees this.
            dropped: (..., D), the same input after dropout, for the down-projection; x by
                default. Linears with one input share it, and so one mask.
            groups: (N, G) float32 with N the product of x's leading axes: one-hot group (task)
                of each token, zero for padding. If given, `RoutingSums` are sown in collection
                `routing`, under the name `sums`.

        Returns:
            (..., F) in the dtype of x.

        Raises:
            UserError: the shared subspace has more dimensions than the input.
        """
        config, inputs = self.config, x.shape[-1]
        if config.subspace != 'up' and config.shared_rank > inputs:
            raise errors.UserError(
                f'adapter.shared_rank is {config.shared_rank}; it must be at most {inputs}, '
                f'the input width of linear {"/".join(self.path) or "adapted"}.'
            )
        x_ND = x.reshape(-1, inputs)
        dropped_ND = x_ND if dropped is None else dropped.reshape(-1, inputs)
        leaves = self._leaves(inputs)
        routing = self._route(x_ND, leaves['router'], groups) if config.has_router else None
        if routing is not None and config.dispatch:
            update_NF = self._scaled(
                dispatch.update(
                    *(dropped_ND, routing.gates, routing.selected, leaves),
                    *(config.top_k, config.dispatch),
                )
            )
        else:
            hidden_NP = compute.hidden(dropped_ND, leaves, config.num_experts)
            if routing is not None:
                hidden_NP = compute.gate(hidden_NP, routing.gates)
            update_NF = compute.output(self._scaled(hidden_NP), leaves)
        return update_NF.reshape(*x.shape[:-1], self.features)

    def _scaled(self, x: jax.Array) -> jax.Array:
        """Times α / rank, in x's dtype even where α is traced, for runs that train together."""
        return jnp.asarray(self.config.scale, x.dtype) * x

    def _leaves(self, inputs: int) -> dict[str, jax.Array]:
        config, (in_axis, out_axis) = self.config, self.axes

        @functools.cache
        def start() -> dict[str, jax.Array]:
            return initializers.start(self.make_rng('params'), config, inputs, self.features)

        down, up = ('shared_rank', 'rank'), ('rank', 'shared_rank')
        axes = {
            'router': (in_axis, 'expert'),
            'down': ('expert', in_axis, 'rank'),
            'shared_down': (in_axis, 'shared_rank'),
            'core': ('expert', *(up if config.subspace == 'up' else down)),
            'up': ('expert', 'rank', out_axis),
            'shared_up': ('shared_rank', out_axis),
        }
        leaves = {}
        for name in (*(('router',) if config.has_router else ()), *config.factors):
            collection = 'adapter_frozen' if name in config.frozen else 'adapter'
            boxed = nn.with_logical_partitioning(lambda name=name: start()[name], axes[name])
            value = cast(jax.Array, self.variable(collection, name, boxed).value)
            leaves[name] = rules.gather(value, axes[name])
        return leaves

    def _route(
        self, x_ND: jax.Array, router_DE: jax.Array, groups_NG: jax.Array | None
    ) -> router.Routing:
        config = self.config
        routing = router.route(
            x_ND,
            router_DE,
            config.top_k,
            renormalize=config.renormalize,
            equal_gates=config.equal_gates,
        )
        if groups_NG is not None:
            sums = router.sum_by_group(routing, groups_NG)
            self.sow('routing', 'sums', sums, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return routing

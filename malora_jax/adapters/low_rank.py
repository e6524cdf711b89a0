"""LowRankExperts: the update (α / rank) · Δ(x) of one adapted linear, for the whole family."""

import functools
from collections.abc import Mapping
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

    def __call__(
        self,
        x: jax.Array,
        dropped: jax.Array | None = None,
        groups: jax.Array | None = None,
    ) -> jax.Array:
        """The update of a linear that has its input for itself: `leaves`, `project`, `update`.

        Args:
            x: (..., D), the input of the linear; the router sees this.
            dropped: (..., D), the same input after dropout, for the down-projection; x by
                default.
            groups: see `update`, with N the product of x's leading axes.

        Returns:
            (..., F) in the dtype of x.

        Raises:
            UserError: the shared subspace has more dimensions than the input.
        """
        x_ND = x.reshape(-1, x.shape[-1])
        dropped_ND = x_ND if dropped is None else dropped.reshape(x_ND.shape)
        leaves = self.leaves(x.shape[-1])
        (projected,) = compute.project(x_ND, dropped_ND, [leaves])
        return self.update(projected, leaves, groups).reshape(*x.shape[:-1], self.features)

    def update(
        self,
        projected: compute.Projected,
        leaves: Mapping[str, jax.Array],
        groups_NG: jax.Array | None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """The update to add to the linear's output, from what its first products gave.

        Args:
            projected: of the linear's input, and of these leaves.
            leaves: see `leaves`.
            groups_NG: float32, one-hot group (task) of each token, zero for padding. If given,
                `RoutingSums` are sown in collection `routing`, under the name `sums`.
            scale: Factor of the update, (), float32; None = that of the config.

        Returns:
            (N, F) in the dtype of the linear's input.
        """
        config = self.config
        routing = None
        if projected.logits is not None:
            routing = self._route(projected.logits, groups_NG)
        if routing is not None and config.dispatch:
            # The paper's saving: S dimensions of a token are dispatched, not D.
            inputs = projected.hidden if 'shared_down' in leaves else projected.dropped
            return self._scaled(
                dispatch.update(inputs, routing.gates, routing.selected, leaves, config.top_k),
                scale,
            )
        hidden_NP = compute.stack(projected.hidden, leaves, config.num_experts)
        if routing is not None:
            hidden_NP = compute.gate(hidden_NP, routing.gates)
        return compute.output(self._scaled(hidden_NP, scale), leaves)

    def _scaled(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        """Return x times the scale, in the dtype of x."""
        return jnp.asarray(self.config.scale if scale is None else scale, x.dtype) * x

    @nn.compact
    def leaves(self, inputs: int) -> dict[str, jax.Array]:
        """The router, if there is one, and the factors, by name.

        Args:
            inputs: D.

        Raises:
            UserError: the shared subspace has more dimensions than the input.
        """
        config, (in_axis, out_axis) = self.config, self.axes
        if config.subspace != 'up' and config.shared_rank > inputs:
            raise errors.UserError(
                f'adapter.shared_rank is {config.shared_rank}; it must be at most {inputs}, '
                f'the input width of linear {"/".join(self.path) or "adapted"}.'
            )

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

    def _route(self, logits_NE: jax.Array, groups_NG: jax.Array | None) -> router.Routing:
        config = self.config
        routing = router.route(
            logits_NE,
            config.top_k,
            renormalize=config.renormalize,
            equal_gates=config.equal_gates,
        )
        if groups_NG is not None:
            sums = router.sum_by_group(routing, groups_NG)
            self.sow('routing', 'sums', sums, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return routing

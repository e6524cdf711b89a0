"""LowRankExperts: the update (α / rank) · Δ(x) of one adapted linear, for the whole family."""

import functools
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import compute, initializers, router
from malora_jax.adapters.config import AdapterConfig


class LowRankExperts(nn.Module):
    """A router and low-rank experts over one linear with D inputs and F outputs.

    Leaves, float32, in collection `adapter`, or `adapter_frozen` if named in `config.frozen`:
    `router` (D, E) with more than one expert; `down` (E, D, R), or `shared_down` (D, S) with
    `core` (E, S, R) where `config.shared_rank` = S; `up` (E, R, F), which starts at zero.

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
        if config.shared_rank > inputs:
            raise errors.UserError(
                f'adapter.shared_rank is {config.shared_rank}; it must be at most {inputs}, '
                f'the input width of linear {"/".join(self.path) or "adapted"}.'
            )
        x_ND = x.reshape(-1, inputs)
        dropped_ND = x_ND if dropped is None else dropped.reshape(-1, inputs)
        hidden_NP = self._down(dropped_ND)
        if config.has_router:
            hidden_NP = compute.gate(hidden_NP, self._gates(x_ND, groups))
        up_ERF = self._leaf(
            'up',
            lambda: jnp.zeros((config.num_experts, config.rank, self.features)),
            ('expert', 'rank', self.axes[1]),
        )
        update_NF = compute.project_up(config.scale * hidden_NP, up_ERF)
        return update_NF.reshape(*x.shape[:-1], self.features)

    def _gates(self, x_ND: jax.Array, groups_NG: jax.Array | None) -> jax.Array:
        # The paper does not say how W_g starts; Kaiming-uniform is what a linear layer does in
        # the paper's framework.
        shape = (x_ND.shape[-1], self.config.num_experts)
        router_DE = self._leaf(
            'router',
            lambda: initializers.kaiming_uniform(self.make_rng('params'), shape),
            (self.axes[0], 'expert'),
        )
        routing = router.route(x_ND, router_DE, self.config.top_k, self.config.renormalize)
        if groups_NG is not None:
            sums = router.sum_by_group(routing, groups_NG)
            self.sow('routing', 'sums', sums, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return routing.gates

    def _down(self, x_ND: jax.Array) -> jax.Array:
        config, inputs = self.config, x_ND.shape[-1]
        if not config.shared_rank:
            shape = (config.num_experts, inputs, config.rank)
            down_EDR = self._leaf(
                'down',
                lambda: initializers.kaiming_uniform(self.make_rng('params'), shape),
                ('expert', self.axes[0], 'rank'),
            )
            return compute.project_down(x_ND, down_EDR)

        @functools.cache
        def start() -> tuple[jax.Array, jax.Array]:
            return initializers.shared_subspace(
                self.make_rng('params'),
                inputs=inputs,
                num_experts=config.num_experts,
                rank=config.rank,
                shared_rank=config.shared_rank,
                beta=config.beta,
            )

        shared_down_DS = self._leaf(
            'shared_down', lambda: start()[0], (self.axes[0], 'shared_rank')
        )
        core_ESR = self._leaf('core', lambda: start()[1], ('expert', 'shared_rank', 'rank'))
        return compute.project_down_shared(x_ND, shared_down_DS, core_ESR)

    def _leaf(self, name: str, start: Callable[[], jax.Array], axes: tuple[str, ...]) -> jax.Array:
        collection = 'adapter_frozen' if name in self.config.frozen else 'adapter'
        leaf = self.variable(collection, name, nn.with_logical_partitioning(start, axes))
        return cast(jax.Array, leaf.value)

"""Flax module of the low-rank experts that adapt one linear layer.

The first factor of the experts is the one that multiplies the input: their down-projections A_t, or
a shared down-projection S_A. The other factors are defined in `structures`.

Dimension letters: N tokens, D inputs, F outputs, E experts, G groups of tokens (tasks), Q columns
of the first factor.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax.adapters import alignment, dispatch, load_balancing, products, routers
from malora_jax.adapters.base_structure import Axis, Leaves
from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.input_products import multiply_expert_inputs, multiply_input
from malora_jax.adapters.task_experts import TaskExperts
from malora_jax.distributed import sharding

# Flax collections of statistics that `LowRankExperts` records.
RECORDED_COLLECTIONS = ('routing', 'alignment', 'selection')
# Input of the down-projections, (N, D); or one for each expert, if experts have dropout masks of
# their own.
AfterDropout = jax.Array | tuple[jax.Array, ...]


class ProjectedInput(NamedTuple):
    """Router logits and down-projected input of one adapter.

    Attributes:
        logits: (N, M) float32, logits of the router, for `RouterConfig.route`; None without a
            router.
        down_projected: (N, Q), down-projection of `after_dropout`: by the shared S_A, or by the
            A_t of all experts, concatenated.
        after_dropout: Input of the linear layer after dropout, as in `project_input`.
        residual: (N, P), down-projection of the input without dropout by the experts of the
            residual; None without a residual.
    """

    logits: jax.Array | None
    down_projected: jax.Array
    after_dropout: AfterDropout
    residual: jax.Array | None = None


def project_input(
    config: AdapterConfig, x_ND: jax.Array, after_dropout: AfterDropout, leaves: Sequence[Leaves]
) -> list[ProjectedInput]:
    """Compute router logits and down-projections for linear layers that share their input.

    For example, the linear layers q, k and v of a transformer layer have the same input. Each of
    them has an adapter of its own.

    Args:
        config: Adapter configuration.
        x_ND: (N, D), shared input of the linear layers, for the routers.
        after_dropout: (N, D), the same input after dropout, for the down-projections; or a tuple of
            such inputs, one for each expert.
        leaves: Parameters of each adapter, by name.

    Returns:
        The projected input of each adapter, in the order of `leaves`.
    """
    axis = config.structure.first_factor_axis
    downs = [config.structure.first_factor(each) for each in leaves]
    router, weights = config.router, []
    if config.has_router and router.has_weight:
        weights = [router.weight(each) for each in leaves]
    routers = weights if router.input == 'x' else []
    logits: Sequence[jax.Array | None]
    is_trained = not {config.structure.factors[0], 'router'}.intersection(config.frozen)
    routed_ND = _router_input(config, _one(after_dropout) if router.after_dropout else x_ND)
    if after_dropout is routed_ND and is_trained:
        down_projected, logits = multiply_input(routed_ND, downs, routers, axis)
    else:
        if isinstance(after_dropout, tuple):
            own = [each[config.structure.factors[0]] for each in leaves]
            down_projected = multiply_expert_inputs(after_dropout, own)
        else:
            down_projected, _ = multiply_input(_one(after_dropout), downs, [], axis)
        _, logits = multiply_input(routed_ND, [], routers, axis)
    if not config.has_router:
        logits = [None] * len(leaves)
    elif not router.has_weight:
        logits = [projected_NQ.astype(jnp.float32) for projected_NQ in down_projected]
    elif not routers:
        logits = [
            products.save_for_backward(
                jnp.matmul(
                    _router_input(config, projected_NQ).astype(jnp.float32),
                    weight_QE,
                    precision=jax.lax.Precision.HIGHEST,
                ),
                name='router',
            )
            for projected_NQ, weight_QE in zip(down_projected, weights, strict=True)
        ]
    residuals = _project_residuals(config, x_ND, leaves)
    return [
        ProjectedInput(*both, after_dropout, residual)
        for both, residual in zip(zip(logits, down_projected, strict=True), residuals, strict=True)
    ]


def _one(after_dropout: AfterDropout) -> jax.Array:
    """Return the only input after dropout, of experts that share their mask."""
    assert not isinstance(after_dropout, tuple)
    return after_dropout


def _router_input(config: AdapterConfig, x: jax.Array) -> jax.Array:
    """Return the input of a router, without a gradient if sampled selections train the router.

    They train the router alone. Otherwise, they would also train the factors of earlier layers.
    """
    return jax.lax.stop_gradient(x) if config.router.samples > 0 else x


def _project_residuals(
    config: AdapterConfig, x_ND: jax.Array, leaves: Sequence[Leaves]
) -> Sequence[jax.Array | None]:
    """Return the down-projections of the input by the residuals; None without residuals."""
    residuals = [config.structure.residual(each) for each in leaves]
    downs = [products.stack_ranks(residual[0]) for residual in residuals if residual is not None]
    return multiply_input(x_ND, downs, [], 'expert')[0] if downs else [None] * len(leaves)


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
        after_dropout: AfterDropout | None = None,
        groups: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Return the update scale · Δ(x), which is added to the output of the frozen layer.

        With `router.samples` and a PRNG stream `selection`, the experts of each token are sampled.
        For linear layers that share their input, `project_input` and `update` are faster.

        Args:
            x: (..., D), input of the linear layer, for the router.
            after_dropout: (..., D), the same input after dropout, for the down-projection; or E
                such inputs, one for each expert, if `config.dropout_masks` is 'expert'; None = x
                without dropout.
            groups: (N, G) float32, a one-hot row for each of the N tokens in x: 1 in the column of
                the token's group (task), else 0. If given, `RoutingSums` are sown, as in `update`.
            train: Whether the structure's own dropout masks apply, as in `update`.

        Returns:
            (..., F) in the dtype of x.

        Raises:
            UserError: The structure does not suit the size of the linear layer, or the adapter has
                parameters for each task and the groups are not its tasks.
        """
        x_ND = x.reshape(-1, x.shape[-1])
        inputs: AfterDropout = x_ND
        if after_dropout is not None and self.config.dropout_masks == 'expert':
            inputs = tuple(each.reshape(x_ND.shape) for each in after_dropout)
        elif after_dropout is not None:
            inputs = _one(after_dropout).reshape(x_ND.shape)
        leaves = self.leaves(x.shape[-1])
        (projected,) = project_input(self.config, x_ND, inputs, [leaves])
        update = self.update(projected, leaves, groups, train=train)
        return update.reshape(*x.shape[:-1], self.features)

    def update(
        self,
        projected: ProjectedInput,
        leaves: Leaves,
        groups_NG: jax.Array | None,
        scale: jax.Array | None = None,
        num_experts: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Route the tokens, and return scale · Δ(x).

        Args:
            projected: Result of `project_input` for these parameters.
            leaves: Parameters by name, as the method `leaves` returns them.
            groups_NG: (N, G) float32, a one-hot row for each token: 1 in the column of the token's
                group (task), else 0; all zeros for padding. If given, `RoutingSums` are sown in
                collection `routing` under the name `sums`; and with an alignment loss,
                `TaskMoments` in collection `alignment` under the name `moments`; and with sampled
                experts, the logarithm of the probability of each token's selection, (N,) float32,
                in collection `selection` under the name `log_probability`. Needed if the adapter
                has parameters for each task; the groups are then its tasks.
            scale: () float32, scale of the update; `config.scale` by default.
            num_experts: () int32, number of experts of this layer; all by default.
            train: Whether the structure's own dropout masks apply, such as those of M-LoRA's heads.
                They need a PRNG stream named `dropout`.

        Returns:
            (N, F) in the dtype of the input.

        Raises:
            UserError: The adapter has parameters for each task, and the groups are not its tasks.
        """
        scale = jnp.asarray(
            self.config.scale if scale is None else scale, projected.down_projected.dtype
        )
        if groups_NG is not None and self.config.alignment_weight > 0:
            moments = alignment.task_moments(projected.down_projected, groups_NG)
            self._record('alignment', 'moments', moments)
        structure, gates_NE = self.config.structure, None
        down_projected_NQ = projected.down_projected
        if isinstance(structure, TaskExperts):
            tasks_NT = self._tasks(groups_NG, len(down_projected_NQ))
            down_projected_NQ, gates_NE = structure.of_tasks(down_projected_NQ, leaves, tasks_NT)
        if projected.logits is not None:
            offset = self.config.router.offset(leaves)
            routing = self._route(projected.logits, offset, groups_NG, num_experts)
            if self.config.dispatch:
                return scale * self._dispatch_update(projected, leaves, routing)
            gates_NE = routing.gates
        if train and structure.has_masks:
            key = self.make_rng('dropout')
            update_NF = structure.masked_update(key, down_projected_NQ, leaves, scale, gates_NE)
        else:
            update_NF = structure.update(down_projected_NQ, leaves, gates_NE, scale)
        residual = structure.residual(leaves)
        if residual is not None and projected.residual is not None:
            update_NF += products.sum_of_experts(scale * projected.residual, residual[1])
        return update_NF

    def _tasks(self, groups_NG: jax.Array | None, num_tokens: int) -> jax.Array:
        """Return the one-hot task of each token, (N, T)."""
        tasks = self.config.tasks
        # While parameters are created, the update is not used.
        if groups_NG is None and self.is_mutable_collection(self.config.collection('up')):
            return jnp.zeros((num_tokens, len(tasks)))
        if groups_NG is None or groups_NG.shape[1] != len(tasks):
            raise self.config.missing_task()
        return groups_NG

    def _dispatch_update(
        self, projected: ProjectedInput, leaves: Leaves, routing: routers.Routing
    ) -> jax.Array:
        structure = self.config.structure
        first, second = structure.dispatch_factors
        # As in the paper, a shared S_A is applied before dispatch, which then moves S numbers per
        # token instead of D.
        inputs = (
            projected.after_dropout if first == structure.factors[0] else projected.down_projected
        )
        return dispatch.update(
            _one(inputs), routing, leaves[first], leaves[second], self.config.router.top_k
        )

    @nn.compact
    def leaves(self, inputs: int) -> dict[str, jax.Array]:
        """Create or read the parameters: the router, if there is one, and the factors.

        Args:
            inputs: Number of inputs of the linear layer, D.

        Returns:
            Float32 parameters by name.

        Raises:
            UserError: The structure does not suit the size of the linear layer.
        """
        config, structure, (in_axis, out_axis) = self.config, self.config.structure, self.axes
        structure.check_size(inputs, self.features, '/'.join(self.path) or 'the linear layer')

        @functools.cache
        def initial_leaves() -> dict[str, jax.Array]:
            return config.initialize(self.make_rng('params'), inputs, self.features)

        leaves = {}
        for name, axes in config.axes(Axis(in_axis, inputs), Axis(out_axis, self.features)).items():
            names = tuple(axis.name for axis in axes)
            boxed = nn.with_logical_partitioning(lambda name=name: initial_leaves()[name], names)
            value = cast(jax.Array, self.variable(config.collection(name), name, boxed).value)
            leaves[name] = sharding.gather(value, names)
        return leaves

    def _route(
        self,
        logits_NM: jax.Array,
        offset_M: jax.Array | None,
        groups_NG: jax.Array | None,
        num_experts: jax.Array | None,
    ) -> routers.Routing:
        offset_1M = None if offset_M is None else offset_M[None]
        router = self.config.router
        if router.samples > 0 and self.has_rng('selection'):
            key = self.make_rng('selection')
            routing, log_probability_N = router.sample(key, logits_NM, num_experts)
            self._record('selection', 'log_probability', log_probability_N)
        else:
            routing = router.route(logits_NM, offset_1M, num_experts)
        if groups_NG is not None:
            distances_NE = router.balance_distances(logits_NM, offset_1M, num_experts)
            sums = load_balancing.sum_by_group(routing, groups_NG, distances_NE)
            self._record('routing', 'sums', sums)
        return routing

    def _record(self, collection: str, name: str, value: Any) -> None:
        self.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)

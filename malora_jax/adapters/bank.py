"""Several adapters of one base model in one batch: each token uses one of them, or none.

For text generation, the experts of every adapter are multiplied out (`dense.fold`). Adapters of all
methods then have the same form, and linear layers with a common input are computed together: one
product for the down-projections of all adapters, and one for all routers.

Dimension letters: N tokens, D inputs and F outputs of a linear layer, A adapters, E experts and R
rank of an adapter, U up-projections of D²MoRA (E for other methods), P = Σ U · R over the adapters
of a linear layer, Q = Σ E · R over the adapters and linear layers, M router outputs of all adapters
and linear layers.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax.adapters import products
from malora_jax.adapters.config import LINEARS, AdapterConfig
from malora_jax.adapters.d2mora import D2MoRA
from malora_jax.adapters.structures import DoRA
from malora_jax.distributed import sharding

# Flax collection of the parameters.
COLLECTION = 'bank'
# Prefix of the names of modules `BankedExperts`; the names of the linear layers follow.
GROUP_PREFIX = 'bank_'


@dataclasses.dataclass(frozen=True)
class AdapterBank:
    """Settings of several adapters of one base model.

    Attributes:
        adapters: Settings of each adapter. A token selects one by its index; the index
            len(adapters) selects none.

    Raises:
        UserError: An adapter has parameters for each task.
    """

    adapters: tuple[AdapterConfig, ...]

    def __post_init__(self):
        for adapter in self.adapters:
            if adapter.tasks:
                raise adapter.missing_task()

    @property
    def has_experts_per_layer(self) -> bool:
        """True if layers have different numbers of experts, with any of the adapters."""
        return any(adapter.experts_per_layer for adapter in self.adapters)

    @property
    def has_router_offset(self) -> bool:
        """True if a router has a bias, with any of the adapters."""
        return any(adapter.has_router and adapter.router.has_offset for adapter in self.adapters)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the linear layers that any of the adapters adapts."""
        return tuple(name for name in LINEARS if self.indices(name))

    def indices(self, linear: str) -> list[int]:
        """Return the indices of the adapters that adapt a linear layer."""
        return [i for i, each in enumerate(self.adapters) if linear in each.targets]

    def has_magnitude(self, linear: str) -> bool:
        """Return whether an adapter rescales the outputs of a linear layer, as DoRA does."""
        return any(isinstance(self.adapters[i].structure, DoRA) for i in self.indices(linear))


class Update(NamedTuple):
    """Update of a linear layer: y becomes (y + added) · factor.

    Attributes:
        added: (N, F), sum of the gated experts.
        factor: (N, F) float32, factor of each output; None if all factors are 1.
    """

    added: jax.Array
    factor: jax.Array | None


class Output(NamedTuple):
    """Output of a linear layer.

    Attributes:
        name: Name of the linear layer.
        features: Number of outputs, F.
        axis: Logical axis name of the outputs.
    """

    name: str
    features: int
    axis: str


class BankedExperts(nn.Module):
    """Updates of linear layers with a common input, by the adapters of a bank.

    The parameters are in collection `bank`, and `models.adapter_bank` computes them: `down`, (D,
    Q), for each adapter, linear layer and expert; `router`, (D, M) float32; `up_NAME`, (P, F), with
    the scale of the adapter; `factor_NAME`, (A + 1, F) float32, if an adapter is a DoRA; `offset`,
    (M,) float32, biases of the routers, if a router has one; `up_router_NAME_INDEX`, (R, U)
    float32, for each adapter that is a D²MoRA; and `experts`, (A,) int32, the number of experts of
    each adapter in this layer, if layers differ.

    Attributes:
        bank: Settings of the adapters.
        input_axis: Logical axis name of the inputs.
        outputs: Outputs of the linear layers that are adapted.
        dtype: Dtype of the projections.
    """

    bank: AdapterBank
    input_axis: str
    outputs: tuple[Output, ...]
    dtype: str

    @nn.compact
    def __call__(self, x_ND: jax.Array, adapter_N: jax.Array) -> dict[str, Update]:
        """Return the update of each linear layer, by its name.

        Args:
            x_ND: Common input of the linear layers.
            adapter_N: int32 index of the adapter of each token.
        """
        shares = [self._share(adapter) for adapter in self.bank.adapters]
        num_ranks, num_logits = zip(*((each.ranks, each.logits) for each in shares), strict=True)
        hidden = jnp.split(self._project_down(x_ND, sum(num_ranks)), _ends(num_ranks), axis=1)
        logits = jnp.split(self._route(x_ND, sum(num_logits)), _ends(num_logits), axis=1)
        offsets = jnp.split(self._offset(sum(num_logits)), _ends(num_logits))
        experts_A = self._num_experts()
        gated: dict[str, list[jax.Array]] = {output.name: [] for output in self.outputs}
        for index, share in enumerate(shares):
            if share.linears:
                num_experts = None if experts_A is None else experts_A[index]
                each = self._gate(
                    index, hidden[index], logits[index], offsets[index], num_experts, adapter_N
                )
                parts = jnp.split(each, len(share.linears), axis=1)
                for name, part in zip(share.linears, parts, strict=True):
                    gated[name].append(self._route_up(index, name, part))
        return {
            output.name: Update(
                self._project_up(output, jnp.concatenate(gated[output.name], axis=1)),
                self._factor(output, adapter_N),
            )
            for output in self.outputs
        }

    def _share(self, adapter: AdapterConfig) -> '_Share':
        linears = [output.name for output in self.outputs if output.name in adapter.targets]
        structure = adapter.structure
        num_experts = adapter.num_experts if adapter.has_router else 1
        return _Share(
            linears,
            len(linears) * (num_experts + structure.num_residual_experts) * structure.rank,
            len(linears) * adapter.num_logits,
        )

    def _project_down(self, x_ND: jax.Array, num_ranks: int) -> jax.Array:
        axes = (self.input_axis, 'rank')
        down_DQ = self._parameter('down', (x_ND.shape[1], num_ranks), axes, self.dtype)
        return products.save_for_backward(x_ND @ down_DQ.astype(x_ND.dtype), 'rank')

    def _route(self, x_ND: jax.Array, num_logits: int) -> jax.Array:
        if not num_logits:
            return jnp.zeros((x_ND.shape[0], 0))
        axes = (self.input_axis, 'rank')
        router_DM = self._parameter('router', (x_ND.shape[1], num_logits), axes, 'float32')
        x32_ND, highest = x_ND.astype(jnp.float32), jax.lax.Precision.HIGHEST
        return products.save_for_backward(
            jnp.matmul(x32_ND, router_DM, precision=highest), 'rank', 'router'
        )

    def _offset(self, num_logits: int) -> jax.Array:
        if not self.bank.has_router_offset:
            return jnp.zeros(num_logits)
        return self._parameter('offset', (num_logits,), ('rank',), 'float32')

    def _num_experts(self) -> jax.Array | None:
        if not self.bank.has_experts_per_layer:
            return None
        return self._parameter('experts', (len(self.bank.adapters),), ('rank',), 'int32')

    def _gate(
        self,
        index: int,
        hidden_NQ: jax.Array,
        logits_NM: jax.Array,
        offset_M: jax.Array,
        num_experts: jax.Array | None,
        adapter_N: jax.Array,
    ) -> jax.Array:
        """Multiply the activations of one adapter by its gates, which are 0 for other tokens."""
        adapter, is_own_N1 = self.bank.adapters[index], (adapter_N == index)[:, None]
        if not adapter.has_router:
            return jnp.where(is_own_N1, hidden_NQ, 0)
        # All linear layers at once, each in rows of its own.
        rows = (-1, adapter.num_logits)
        offset = None
        if adapter.router.has_offset:
            offset = jnp.broadcast_to(offset_M[None], logits_NM.shape).reshape(rows)
        routing = adapter.router.route(logits_NM.reshape(rows), offset, num_experts)
        gates, residual = routing.gates, adapter.structure.num_residual_experts
        if residual:
            gates = jnp.pad(gates, ((0, 0), (0, residual)), constant_values=1)
        gates_NE = gates.reshape(hidden_NQ.shape[0], -1)
        return products.gate(hidden_NQ, jnp.where(is_own_N1, gates_NE, 0))

    def _route_up(self, index: int, linear: str, gated_NP: jax.Array) -> jax.Array:
        """Apply the second router of an adapter to its gated activations, if it has one."""
        structure = self.bank.adapters[index].structure
        if not isinstance(structure, D2MoRA):
            return gated_NP
        shape, axes = (structure.rank, structure.num_up_experts), ('rank', 'rank')
        up_router_RU = self._parameter(f'up_router_{linear}_{index}', shape, axes, 'float32')
        return structure.route_up(gated_NP, up_router_RU)

    def _project_up(self, output: Output, hidden_NP: jax.Array) -> jax.Array:
        shape, axes = (hidden_NP.shape[1], output.features), ('rank', output.axis)
        up_PF = self._parameter(f'up_{output.name}', shape, axes, self.dtype)
        return hidden_NP @ up_PF.astype(hidden_NP.dtype)

    def _factor(self, output: Output, adapter_N: jax.Array) -> jax.Array | None:
        if not self.bank.has_magnitude(output.name):
            return None
        shape, axes = (len(self.bank.adapters) + 1, output.features), ('rank', output.axis)
        return self._parameter(f'factor_{output.name}', shape, axes, 'float32')[adapter_N]

    def _parameter(
        self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], dtype: str
    ) -> jax.Array:
        boxed = nn.with_logical_partitioning(lambda: jnp.zeros(shape, dtype), axes)
        return sharding.gather(cast(jax.Array, self.variable(COLLECTION, name, boxed).value), axes)


class _Share(NamedTuple):
    """Share of one adapter in the products of several linear layers.

    Attributes:
        linears: Names of the linear layers that it adapts.
        ranks: Number of columns in the product with the down-projections.
        logits: Number of columns in the product with the routers; 0 without a router.
    """

    linears: list[str]
    ranks: int
    logits: int


def _ends(sizes: Sequence[int]) -> list[int]:
    """Return where each part of an axis ends, except the last one, for `jnp.split`."""
    return list(itertools.accumulate(sizes))[:-1]

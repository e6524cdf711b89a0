"""The adapter of one linear layer of an NNX model: variables of NNX around `LowRankExperts`.

Dimension letters: N tokens, D inputs, F outputs, E experts.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from malora_jax.adapters import AdapterConfig, LowRankExperts
from malora_jax.adapters.base_structure import Axis
from malora_jax.adapters.dropout import drop_input
from malora_jax.adapters.load_balancing import DistanceSums, RoutingSums
from malora_jax.adapters.low_rank import AfterDropout
from malora_jax.nnx.linear_maps import LinearMap


class FrozenAdapter(nnx.Variable):
    """Leaf of an adapter that the optimizer does not train, such as a random A."""


class RoutingStatistics(nnx.Variable):
    """Routing sums of the last batch, stacked: (fields of `RoutingSums`, E) float32."""


class AdapterLayer(nnx.Module):
    """The adapter of one linear layer, which computes scale · Δ(x) by `LowRankExperts`.

    Its leaves are attributes with the names of the Flax collections `adapter` and `adapter_frozen`:
    `nnx.LoRAParam` or `FrozenAdapter`, float32. `model.train()` and `model.eval()` turn dropout on
    and off.

    Attributes:
        config: Adapter configuration.
        linear: The adapted layer.
        deterministic: Whether dropout is off.
        rngs: Random stream `dropout`.
        statistics: Routing sums of the last batch; None without a router.
    """

    def __init__(
        self, config: AdapterConfig, linear: LinearMap, kernel: nnx.Variable, rngs: nnx.Rngs
    ):
        """Initialize the leaves, sharded like the kernel.

        Args:
            config: Adapter configuration.
            linear: The adapted layer.
            kernel: Weight of the adapted layer.
            rngs: Random streams `params` and `dropout`.
        """
        self.config = config
        self.linear = linear
        self.deterministic = True
        self.rngs = nnx.Rngs(dropout=rngs.dropout())
        for name, leaf in _initialize(
            config, rngs.params(), linear.num_inputs, linear.num_outputs
        ).items():
            setattr(self, name, self._variable(name, leaf, kernel))
        sums = jnp.zeros((len(self._sums_type._fields), config.num_experts))
        self.statistics = RoutingStatistics(sums) if config.has_router else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the update scale · Δ(x), in the shape of the layer's output and the dtype of x.

        Args:
            x: Input of the layer.
        """
        x_ND, config, train = self.linear.flatten(x), self.config, not self.deterministic
        after_dropout: AfterDropout | None = None
        rngs: dict[str, jax.Array] = {}
        if train and self.has_dropout:
            input_key, rngs['dropout'] = jax.random.split(self.rngs.dropout())
            if config.dropout > 0:
                after_dropout = drop_input(
                    input_key, x_ND, config.dropout, config.dropout_masks, config.num_experts
                )
        variables: dict[str, dict[str, jax.Array]] = {}
        for name in config.leaf_names:
            variables.setdefault(config.collection(name), {})[name] = getattr(self, name)[...]
        update_NF, recorded = LowRankExperts(config, self.linear.num_outputs).apply(
            variables,
            x_ND,
            after_dropout,
            jnp.ones((len(x_ND), 1)),
            train,
            rngs=rngs,
            mutable=['routing'],
        )
        if self.statistics is not None:
            sums = jnp.concatenate(recorded['routing']['sums'])
            self.statistics.set_value(sums)
        return self.linear.unflatten(update_NF, x)

    @property
    def has_dropout(self) -> bool:
        """True if training drops inputs of the layer, or parts of the method such as experts."""
        return self.config.dropout > 0 or self.config.structure.has_masks

    @property
    def sums(self) -> RoutingSums | None:
        """Routing sums of the last batch, (1, 1, E): one layer, one group of tokens; or None.

        They are `DistanceSums` if the load-balancing loss uses distances.
        """
        if self.statistics is None:
            return None
        return self._sums_type(*self.statistics[...][:, None, None])

    def state_of_batch(self) -> list[nnx.Variable]:
        """Return the variables that every training step changes: statistics and random stream."""
        variables = [] if self.statistics is None else [self.statistics]
        return variables + ([self.rngs.dropout.count] if self.has_dropout else [])

    @property
    def _sums_type(self) -> Any:
        is_distance = self.config.router.balance_scores == 'distance'
        return DistanceSums if is_distance else RoutingSums

    def _variable(self, name: str, leaf: jax.Array, kernel: nnx.Variable) -> nnx.Variable:
        """Return the variable of a leaf, whose input and output axes are sharded like the kernel's.

        The other axes are not sharded, and neither are axes that the kernel divides in a way that
        does not split the flattened axis into equal consecutive parts.
        """
        letters = {'inputs': self.linear.contracted[0], 'outputs': self.linear.added[0]}
        axes = self.config.axes(Axis('inputs', 1), Axis('outputs', 1))[name]
        positions = [
            self.linear.kernel.index(letters[axis.name]) if axis.name in letters else None
            for axis in axes
        ]

        def select(spec: Any) -> tuple[Any, ...]:
            entries = [*spec, *[None] * (len(self.linear.kernel) - len(spec))]
            return tuple(None if each is None else entries[each] for each in positions)

        place = getattr(kernel.get_value(), 'sharding', None)
        if isinstance(place, NamedSharding):
            leaf = jax.device_put(leaf, place.update(spec=PartitionSpec(*select(place.spec))))
        names = kernel.get_metadata().get('out_sharding')
        metadata: dict[str, Any] = {} if names is None else {'out_sharding': select(names)}
        is_trained = self.config.collection(name) == 'adapter'
        kind = nnx.LoRAParam if is_trained else FrozenAdapter
        return kind(leaf, eager_sharding=False, **metadata)


def adapter_layers(model: nnx.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """Yield the path of each adapted layer of a model, and its adapter."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, AdapterLayer):
            yield '/'.join(map(str, path[:-1])), module


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _initialize(
    config: AdapterConfig, key: jax.Array, inputs: int, outputs: int
) -> dict[str, jax.Array]:
    return config.initialize(key, inputs, outputs)

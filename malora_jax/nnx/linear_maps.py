"""Linear layers of NNX models as einsums: `nnx.Linear`, and the layers of tunix and MaxText.

An adapter reads tokens (N, D) and returns an update (N, F). A layer of an NNX model may have
several axes of inputs or outputs, such as the heads of an attention layer, in any order.

Dimension letters: N tokens, D inputs, F outputs.
"""

import dataclasses
import math
import string
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from malora_jax import errors

# Attributes that hold the weight: of Flax's and MaxText's layers, and of tunix's `Einsum`.
_KERNELS = ('kernel', 'w')
# Attributes that hold the number of inputs: of Flax's layers, and of MaxText's `DenseGeneral`.
_INPUTS = ('in_features', 'in_features_shape')


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A linear layer y = W x, as an einsum of its input and its weight.

    Attributes:
        inputs: Letters of the input's axes; an ellipsis is any number of axes.
        kernel: Letters of the weight's axes.
        outputs: Letters of the output's axes.
        kernel_shape: Shape of the weight.
    """

    inputs: str
    kernel: str
    outputs: str
    kernel_shape: tuple[int, ...]

    @property
    def contracted(self) -> str:
        """Letters over which the layer sums, in the weight's order: its D inputs."""
        return ''.join(each for each in self.kernel if each not in self.outputs)

    @property
    def added(self) -> str:
        """Letters of weight and output only, in the weight's order: the layer's F outputs."""
        return ''.join(each for each in self.kernel if each not in self.inputs)

    @property
    def num_inputs(self) -> int:
        """Number of inputs, D."""
        return self._size(self.contracted)

    @property
    def num_outputs(self) -> int:
        """Number of outputs, F."""
        return self._size(self.added)

    def flatten(self, x: jax.Array) -> jax.Array:
        """Return the input of the layer as tokens, (N, D)."""
        return self._tokens_first(x).reshape(-1, self.num_inputs)

    def unflatten(self, update_NF: jax.Array, x: jax.Array) -> jax.Array:
        """Return the update of each token in the shape of the layer's output.

        Args:
            update_NF: (N, F), update of each token.
            x: Input of the layer.
        """
        tokens = jax.eval_shape(self._tokens_first, x).shape[: -len(self.contracted)]
        shape = [self.kernel_shape[self.kernel.index(each)] for each in self.added]
        update = update_NF.reshape(*tokens, *shape)
        return jnp.einsum(f'{self._tokens}{self.added}->{self.outputs}', update)

    @property
    def _tokens(self) -> str:
        return ''.join(each for each in self.inputs if each not in self.contracted)

    def _tokens_first(self, x: jax.Array) -> jax.Array:
        return jnp.einsum(f'{self.inputs}->{self._tokens}{self.contracted}', x)

    def _size(self, letters: str) -> int:
        return math.prod(self.kernel_shape[self.kernel.index(each)] for each in letters)


def kernel_of(module: nnx.Module) -> nnx.Variable | None:
    """Return the weight of a layer; None if the module has none."""
    for name in _KERNELS:
        kernel = getattr(module, name, None)
        if isinstance(kernel, nnx.Param):
            return kernel
    return None


def linear_map(path: str, module: nnx.Module, kernel: nnx.Variable) -> LinearMap:
    """Return the linear map of a layer.

    Args:
        path: Path of the layer in the model, for messages.
        module: Layer.
        kernel: Weight of the layer.

    Raises:
        UserError: The layer is not a linear map of the last axes of its input, or has a weight for
            each entry of an axis, such as for each expert of the base model.
    """
    shape = tuple(kernel.get_value().shape)
    equation = getattr(module, 'einsum_str', None) or _equation(module, shape)
    operands, _, outputs = equation.replace(' ', '').partition('->')
    inputs, _, weight = operands.partition(',')
    found = LinearMap(inputs, weight, outputs, shape)
    tokens = [each for each in inputs if each not in weight]
    is_linear = (
        len(weight) == len(shape) == len({*weight})
        and bool(found.contracted)
        and {*found.contracted} <= {*inputs}
        and {*found.added} <= {*outputs}
        and {*tokens} <= {*outputs}
        and not {*inputs} & {*weight} & {*outputs}
    )
    if not is_linear:
        raise errors.UserError(
            f'{path} ({type(module).__name__}, {equation or "not an einsum"}, weight {shape}) '
            'cannot be adapted, because an adapter needs one weight for all tokens that multiplies '
            'their last axes: choose other layers with module_path or adapter.targets.'
        )
    return found


def _equation(module: Any, kernel_shape: tuple[int, ...]) -> str:
    """Return the einsum of a layer that multiplies the last axes of its input; else ''."""
    features = next((getattr(module, name) for name in _INPUTS if hasattr(module, name)), ())
    features = features if isinstance(features, tuple) else (features,)
    axes = getattr(module, 'axis', (-1,))
    axes = axes if isinstance(axes, tuple) else (axes,)
    num_inputs = len(features)
    is_last = axes == tuple(range(-num_inputs, 0)) and not getattr(module, 'batch_axis', None)
    if not features or kernel_shape[:num_inputs] != features or not is_last:
        return ''
    letters = string.ascii_lowercase[: len(kernel_shape)]
    inputs, outputs = letters[:num_inputs], letters[num_inputs:]
    return f'...{inputs},{letters}->...{outputs}'

"""Adapt the linear layers of an NNX model, such as those of tunix and MaxText.

The class of an adapted layer is replaced by a subclass, so that paths and values of the base model
stay as they are: its loaders, its sharding and its checkpoints work as before.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from malora_jax import errors
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.task_experts import TaskExperts
from malora_jax.nnx.layers import AdapterLayer
from malora_jax.nnx.linear_maps import kernel_of, linear_map

_Q, _K, _V, _O, _GATE, _UP, _DOWN = LINEARS
# Targets that a layer computes, by the layer's name in tunix or MaxText.
LAYER_TARGETS: Mapping[str, tuple[str, ...]] = {
    **{f'{name}_proj': (name,) for name in LINEARS},
    **{f'{name}_einsum': (name,) for name in 'qkv'},
    'kv_einsum': (_K, _V),
    'qkv_einsum': (_Q, _K, _V),
    'attn_vec_einsum': (_O,),
    **{'query': (_Q,), 'key': (_K,), 'value': (_V,), 'qkv_proj': (_Q, _K, _V), 'out': (_O,)},
    **{'wi_0': (_GATE,), 'wi_1': (_UP,), 'wi': (_GATE, _UP), 'wo': (_DOWN,)},
}


def adapt(
    model: nnx.Module, config: AdapterConfig, *, rngs: nnx.Rngs, module_path: str | None = None
) -> None:
    """Add an adapter to linear layers of an NNX model, in place.

    For example, MALoRA on a model of tunix, whose trainer then trains only the adapter:

        adapt(model, method('malora'), rngs=nnx.Rngs(0))

    The adapter of a layer is its attribute `adapter`, an `AdapterLayer`. The base model's variables
    keep their paths and values. Dropout is off until `model.train()` is called; `training_loss`
    turns it on for the loss.

    Args:
        model: Model to adapt.
        config: Adapter configuration, as `method` returns it.
        rngs: Random streams: `params` for initial values, and `dropout`.
        module_path: Regular expression that the whole path of a layer matches, such as
            '.*/(q_proj|v_proj)'; None for the layers that compute `config.targets` in models of
            tunix and MaxText, by their names in `LAYER_TARGETS`.

    Raises:
        UserError: The model already has an adapter, the method or a layer cannot be adapted, or no
            layer is found.
    """
    _check_method(config)
    found = _find_layers(model, config, module_path)
    maps = {}
    for path, (layer, kernel) in found.items():
        if hasattr(layer, 'adapter'):
            raise errors.UserError(f'{path} already has an attribute adapter: adapt a new model.')
        maps[path] = linear = linear_map(path, layer, kernel)
        config.structure.check_size(linear.num_inputs, linear.num_outputs, path)
    for path, (layer, kernel) in found.items():
        layer.adapter = AdapterLayer(config, maps[path], kernel, rngs)
        layer.__class__ = _adapted_class(layer.__class__)


def rematerialize(model: nnx.Module, module_path: str) -> None:
    """Recompute modules of an NNX model in the backward pass, in place; their state is kept.

    Models of tunix can recompute their layers (`remat_config`), but drop what the layers record.
    For example, to recompute every layer of such a model:

        rematerialize(model, 'layers/[0-9]+')

    Args:
        model: Model to change.
        module_path: Regular expression that the whole path of a module matches.

    Raises:
        UserError: No module is found.
    """
    modules = [
        module
        for path, module in nnx.iter_modules(model)
        if re.fullmatch(module_path, '/'.join(map(str, path)))
    ]
    if not modules:
        raise errors.UserError(f'module_path {errors.short_repr(module_path)} matches no module.')
    for module in modules:
        module.__class__ = _rematerialized_class(module.__class__)


def _find_layers(
    model: nnx.Module, config: AdapterConfig, module_path: str | None
) -> dict[str, tuple[Any, nnx.Variable]]:
    """Return the layers to adapt and their weights, by path.

    Raises:
        UserError: No layer is found for the regular expression or for a target, or a layer computes
            another linear besides a target.
    """
    layers = {
        '/'.join(map(str, path)): (module, kernel)
        for path, module in nnx.iter_modules(model)
        if (kernel := kernel_of(module)) is not None
    }
    if module_path is not None:
        found = {path: each for path, each in layers.items() if re.fullmatch(module_path, path)}
        if not found:
            example = next(iter(layers), 'none')
            raise errors.UserError(
                f'module_path {errors.short_repr(module_path)} matches none of the {len(layers)} '
                f'layers with a kernel; the first of them is {example}.'
            )
        return found
    found, missing = {}, [*config.targets]
    for path, both in layers.items():
        computed = LAYER_TARGETS.get(path.rpartition('/')[2], ())
        if not {*computed} & {*config.targets}:
            continue
        if not {*computed} <= {*config.targets}:
            raise errors.UserError(
                f'{path} computes {" and ".join(computed)} together: adapter.targets must name all '
                'of them, or none.'
            )
        found[path] = both
        missing = [name for name in missing if name not in computed]
    if missing:
        raise errors.UserError(
            f'{type(model).__name__} has no linear layer for {", ".join(missing)} of '
            'adapter.targets: leave them out, or choose layers by their path with module_path.'
        )
    return found


def _check_method(config: AdapterConfig) -> None:
    """Check that the method needs only what a layer of an NNX model can give.

    Raises:
        UserError: It needs something else.
    """
    structure, router = config.structure, config.router
    reasons = {
        'starts from the frozen kernel (magnitude, or start svd)': bool(
            structure.kernel_dependent or (structure.num_residual_experts and config.has_router)
        ),
        'has parameters for each task (subspace tasks)': isinstance(structure, TaskExperts),
        'samples selections of experts in several passes (samples)': router.samples > 0,
        'compares tasks (alignment_weight)': config.alignment_weight > 0,
        'has a number of experts for each layer (experts_per_layer)': bool(
            config.experts_per_layer
        ),
    }
    for reason, is_needed in reasons.items():
        if is_needed:
            raise errors.UserError(
                f'The method {reason}, which an NNX model cannot give: choose another method, or '
                'train with malora_jax itself.'
            )


@functools.cache
def _adapted_class(cls: Any) -> Any:
    """Return the class of an adapted layer, which adds the update of attribute `adapter`."""

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = cls.__call__(self, x, *args, **kwargs)
        return y + self.adapter(x).astype(y.dtype)

    return _subclass(cls, call)


@functools.cache
def _rematerialized_class(cls: Any) -> Any:
    """Return the class of a module that is recomputed in the backward pass."""
    return _subclass(cls, nnx.remat(cls.__call__))


def _subclass(cls: Any, call: Callable[..., Any]) -> Any:
    return type(cls.__name__, (cls,), {'__call__': call, '__module__': cls.__module__})

"""Losses that training adds to the loss of a model, and the dropout of its adapters."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from malora_jax import errors
from malora_jax.adapters import load_balancing
from malora_jax.adapters.load_balancing import RoutingSums
from malora_jax.adapters.routers import BALANCE_BIAS
from malora_jax.adapters.similarity_loss import similarity_loss
from malora_jax.nnx.layers import AdapterLayer, adapter_layers


def routing_statistics(model: nnx.Module) -> dict[str, RoutingSums]:
    """Return the routing sums of the last batch, by path of the adapted layer.

    All tokens of the batch count, as the layers do not know which are padding.

    Args:
        model: Model with an adapter.

    Returns:
        Sums whose fields are (1, 1, E), for `load_balancing.routing_metrics` and the like; they are
        `DistanceSums` if the load-balancing loss uses distances. Empty without routers.
    """
    found = {path: layer.sums for path, layer in adapter_layers(model)}
    return {path: sums for path, sums in found.items() if sums is not None}


def balance_loss(model: nnx.Module) -> jax.Array:
    """Return the load-balancing loss of the last batch, averaged over all routers.

    Call it in a loss function, after the model. `training_loss` does that.

    Args:
        model: Model with an adapter.

    Returns:
        () float32, without its weight; 1 if the load is balanced, 0 if there are no routers.
    """
    config = next((layer.config for _, layer in adapter_layers(model)), None)
    return load_balancing.mean_balance_loss(routing_statistics(model), config)


def training_loss(loss_function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss function for training: with dropout, and with the losses of the adapter.

    For example, with tunix's trainer, whose evaluation keeps its own loss function:

        trainer.loss_fn = training_loss(trainer.loss_fn)

    The load-balancing and similarity losses are added with the weights of the adapter's
    configuration, and balancing biases change by their rate in every call.

    Args:
        loss_function: Function of a model and other arguments that calls the model once. Its result
            is a loss; a tuple of a loss and other values; or tunix's `LossOutput`.

    Returns:
        Function with the same arguments and the same kind of result. It raises a `UserError` if the
        model has no adapter, or drops the state of its layers.
    """

    @functools.wraps(loss_function)
    def with_adapter(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        layers = dict(adapter_layers(model))
        if not layers:
            raise errors.UserError('The model has no adapter: call malora_jax.nnx.adapt before.')
        with _dropout_on(layers), _state_kept(layers):
            result = loss_function(model, *args, **kwargs)
        added = _adapter_loss(model, layers)
        _update_biases(model, layers)
        return _add(result, added)

    return with_adapter


@contextlib.contextmanager
def _dropout_on(layers: dict[str, AdapterLayer]) -> Iterator[None]:
    before = {path: layer.deterministic for path, layer in layers.items()}
    for layer in layers.values():
        layer.deterministic = False
    yield
    for path, layer in layers.items():
        layer.deterministic = before[path]


@contextlib.contextmanager
def _state_kept(layers: dict[str, AdapterLayer]) -> Iterator[None]:
    """Check that all layers have kept the state of the batch.

    jax.checkpoint drops it if a model splits its layers itself. Each step would then have the same
    dropout masks, and the load-balancing loss would be that of an earlier batch.
    """
    before = {
        path: [variable.get_value() for variable in layer.state_of_batch()]
        for path, layer in layers.items()
    }
    yield
    for path, layer in layers.items():
        after = [variable.get_value() for variable in layer.state_of_batch()]
        if any(new is old for new, old in zip(after, before[path], strict=True)):
            raise errors.UserError(
                f'{path} has kept no routing statistics or random state: the loss function does '
                'not call it, or the model recomputes it without its state (in tunix, set '
                'remat_config to RematConfig.NONE, and use malora_jax.nnx.rematerialize).'
            )


def _adapter_loss(model: nnx.Module, layers: dict[str, AdapterLayer]) -> jax.Array:
    """Return the weighted load-balancing and similarity losses of the adapter."""
    total = jnp.float32(0)
    config = next(iter(layers.values())).config
    if config.has_router and config.router.balance_weight > 0:
        total += config.router.balance_weight * balance_loss(model)
    if config.similarity_weight > 0:
        trained = {
            path: {
                name: getattr(layer, name)[...][None]
                for name in config.leaf_names
                if config.collection(name) == 'adapter'
            }
            for path, layer in layers.items()
        }
        total += config.similarity_weight * similarity_loss(config, trained)
    return total


def _update_biases(model: nnx.Module, layers: dict[str, AdapterLayer]) -> None:
    """Change the balancing biases by the load of this batch."""
    config = next(iter(layers.values())).config
    if config.router.bias_rate == 0:
        return
    biases = {
        f'{path}/{BALANCE_BIAS}': getattr(layer, BALANCE_BIAS)[...][None]
        for path, layer in layers.items()
    }
    routing = jax.lax.stop_gradient(routing_statistics(model))
    tree = load_balancing.update_biases(config, unflatten_dict(biases, sep='/'), routing)
    updated = flatten_dict(tree, sep='/')
    for path, layer in layers.items():
        getattr(layer, BALANCE_BIAS).set_value(updated[f'{path}/{BALANCE_BIAS}'][0])


def _add(result: Any, added: jax.Array) -> Any:
    """Return the result of a loss function with a loss added."""
    if isinstance(result, tuple):
        return (result[0] + added, *result[1:])
    primary = getattr(result, 'primary_loss', None)
    if primary is None:
        return result + added
    # tunix's trainer divides the sum by the denominator, in the loss and in the gradient.
    total = primary.unreduced_sum + added * primary.denominator
    return result.replace(primary_loss=primary.replace(unreduced_sum=total))

"""Scores of the experts, by which a router chooses the experts of a token.

Each function takes the logits of N tokens; a bias, which is added to the scores that choose experts
but not to the gates; and a mask of the experts that a layer has. The last two may be None. With
`RouterConfig.bias_in_gates`, the scores that choose experts are also the gates.

Dimension letters: N tokens, E experts, M = E + 1 logits of a router with a threshold.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Scores(NamedTuple):
    """Scores of the experts for N tokens, before the choice of the top k.

    Attributes:
        probability: (N, E) float32; each row sums to one.
        gate: (N, E) float32, gate of each expert if it is chosen.
        choice: (N, E) float32; a token is routed to the experts with the largest of them.
    """

    probability: jax.Array
    gate: jax.Array
    choice: jax.Array


def shares(values_NE: jax.Array) -> jax.Array:
    """Return each entry's share of the sum of its row; zeros if the sum is zero."""
    total = values_NE.sum(axis=-1, keepdims=True)
    return values_NE / jnp.where(total > 0, total, 1.0)


def fill(values_NE: jax.Array, is_available_NE: jax.Array | None, value: float) -> jax.Array:
    """Set the entries of experts that a layer does not have to a value."""
    return values_NE if is_available_NE is None else jnp.where(is_available_NE, values_NE, value)


def _softmax(
    logits_NE: jax.Array, bias_NE: jax.Array | None, is_available_NE: jax.Array | None
) -> Scores:
    probability_NE = jax.nn.softmax(fill(logits_NE, is_available_NE, -jnp.inf), axis=-1)
    return Scores(probability_NE, probability_NE, _add(probability_NE, bias_NE))


def _absolute(
    logits_NE: jax.Array, bias_NE: jax.Array | None, is_available_NE: jax.Array | None
) -> Scores:
    """Arrow (arXiv 2405.11157): the sign of a singular vector, and of its logit, is arbitrary."""
    return _softmax(jnp.abs(logits_NE), bias_NE, is_available_NE)


def _sigmoid(
    logits_NE: jax.Array, bias_NE: jax.Array | None, is_available_NE: jax.Array | None
) -> Scores:
    """SMoRA (arXiv 2501.15103): experts do not compete before the choice."""
    score_NE = jax.nn.sigmoid(fill(logits_NE, is_available_NE, -jnp.inf))
    return Scores(shares(score_NE), score_NE, _add(score_NE, bias_NE))


def _threshold(
    logits_NM: jax.Array, bias_NM: jax.Array | None, is_available_NE: jax.Array | None
) -> Scores:
    """AdaMoLE (arXiv 2405.00361): distance of a probability p from the threshold sigmoid(·) / E.

    The largest probability is at least 1 / E, so at least one expert is above the threshold. The
    last logit, and the last entry of the bias, belong to the threshold.
    """
    assert bias_NM is not None
    probability_NE, _, _ = _softmax(logits_NM[:, :-1], None, is_available_NE)
    fraction_N1 = jax.nn.sigmoid(logits_NM[:, -1:] + bias_NM[:, -1:])
    experts = (
        probability_NE.shape[-1]
        if is_available_NE is None
        else is_available_NE.sum(axis=-1, keepdims=True)
    )
    distance_NE = probability_NE - fraction_N1 / experts
    return Scores(probability_NE, distance_NE, distance_NE)


def _magnitude(
    activations_NE: jax.Array, bias_NE: jax.Array | None, is_available_NE: jax.Array | None
) -> Scores:
    """FlyLoRA (NeurIPS 2025): absolute values of the activations A x of single ranks."""
    activations_NE = fill(activations_NE, is_available_NE, 0)
    magnitude_NE = jnp.abs(activations_NE)
    return Scores(shares(magnitude_NE), magnitude_NE, jnp.abs(_add(activations_NE, bias_NE)))


def _add(values_NE: jax.Array, bias_NE: jax.Array | None) -> jax.Array:
    return values_NE if bias_NE is None else values_NE + bias_NE


# Scores by the value of `adapter.scores`.
SCORES: dict[str, Callable[[jax.Array, jax.Array | None, jax.Array | None], Scores]] = {
    'softmax': _softmax,
    'absolute': _absolute,
    'sigmoid': _sigmoid,
    'threshold': _threshold,
    'magnitude': _magnitude,
}

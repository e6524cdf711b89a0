"""Singular values of all experts of a linear module together (Figure 3 of the paper).

The A (down-projections) of the experts are concatenated, and so are the B (up-projections). The
number of large singular values is the number of directions that the experts use.

Dimension letters: L layers, K singular values.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from malora_jax.analysis.similarity import FLOAT32_EPSILON
from malora_jax.analysis.spectra import directions, random_singular_values, singular_values


class ExpertSpectrum(NamedTuple):
    """Singular values of the concatenated down-projections (A), or up-projections (B).

    The control is a matrix to compare with. For A, the control is the initial A; if the initial A
    is unknown, it is a random matrix of the same norm. For B, it is always such a random matrix.

    A direction is a singular vector. The squared norm of a matrix is the sum of its squared
    singular values, so each direction carries one term of this sum.

    Attributes:
        trained: (L, K) singular values after training.
        control: (L, K) singular values of the control.
        directions: (L,) number of directions that carry 90% of the squared norm after training.
        control_directions: (L,) number of directions that carry 90% of the control's squared norm.
        max_directions: Largest possible number of directions: the rank of the concatenated matrix,
            in the layer where this rank is largest.
    """

    trained: np.ndarray
    control: np.ndarray
    directions: np.ndarray
    control_directions: np.ndarray
    max_directions: int


def expert_spectra(
    trained: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray] | None
) -> dict[str, ExpertSpectrum]:
    """Return the singular values of the experts' projections in one linear module.

    Args:
        trained: Trained projections, as `adapter_weights.expert_projections` returns them.
        start: Initial projections in the same form; None if they are unknown.

    Returns:
        A dict with two keys: 'A' for the down-projections and 'B' for the up-projections.
    """
    down_LEDR, up_LEFR = trained['A'], trained['B']
    down_control = random_singular_values(down_LEDR)
    if start is not None:
        down_control = singular_values(start['A'])
    return {
        'A': _expert_spectrum(singular_values(down_LEDR), down_control),
        'B': _expert_spectrum(singular_values(up_LEFR), random_singular_values(up_LEFR)),
    }


def _expert_spectrum(trained_LK: np.ndarray, control_LK: np.ndarray) -> ExpertSpectrum:
    # Singular values that are only rounding errors are dropped: MALoRA's A has rank d at most.
    largest = max(trained_LK.max(), control_LK.max())
    max_directions = int((trained_LK > FLOAT32_EPSILON * largest).any(axis=0).sum())
    nonzero = slice(max(max_directions, 1))
    return ExpertSpectrum(
        trained_LK[:, nonzero],
        control_LK[:, nonzero],
        directions(trained_LK),
        directions(control_LK),
        max_directions,
    )

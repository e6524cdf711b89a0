"""Figure 3: over how many directions the experts of a linear spread.

Dimension letters: L layers, K singular values.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from malora_jax.analysis.similarity import PRECISION
from malora_jax.analysis.spectra import directions, random_singular_values, singular_values


class Spread(NamedTuple):
    """Singular values of the experts' concatenated A, or B.

    Attributes:
        trained: (L, K).
        control: (L, K); of A at the start if that is known, else random of the same norm.
        directions: (L,), how many carry 90% of the squared norm.
        control_directions: (L,), the same of the control.
        possible: how many there may be at most: the rank of all experts together.
    """

    trained: np.ndarray
    control: np.ndarray
    directions: np.ndarray
    control_directions: np.ndarray
    possible: int


def spread(
    trained: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray] | None
) -> dict[str, Spread]:
    """Measure the projections of one linear, by side.

    Args:
        trained: Projections by side, see `weights.projections_of`.
        start: Their initial values, if these are known.
    """
    down_LEDR, up_LEFR = trained['A'], trained['B']
    down_control = random_singular_values(down_LEDR)
    if start is not None:
        down_control = singular_values(start['A'])
    return {
        'A': _spread(singular_values(down_LEDR), down_control),
        'B': _spread(singular_values(up_LEFR), random_singular_values(up_LEFR)),
    }


def _spread(trained_LK: np.ndarray, control_LK: np.ndarray) -> Spread:
    # Values that only rounding makes are left out: of MALoRA's A there are d.
    largest = max(trained_LK.max(), control_LK.max())
    possible = int((trained_LK > PRECISION * largest).any(axis=0).sum())
    kept = slice(max(possible, 1))
    return Spread(
        trained_LK[:, kept],
        control_LK[:, kept],
        directions(trained_LK),
        directions(control_LK),
        possible,
    )

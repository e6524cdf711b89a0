"""What each expert multiplies with on its two sides, whatever the leaves are that a method has.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear, S rank of the subspace,
R rank of an expert.
"""

from collections.abc import Mapping

import numpy as np


def down_projections(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """The transposes of A_t; of P_t S_A or P_t S_t where there are cores on the input's side.

    Args:
        leaves: of one linear in all layers.

    Returns:
        (L, E, D, R) float64; (L, 1, D, R) where the experts have one A in common.
    """
    own = 'core' in leaves and 'shared_up' not in leaves
    core_LESR = np.asarray(leaves['core'], np.float64) if own else None
    if 'shared_down' in leaves:
        down_L1DS = np.asarray(leaves['shared_down'], np.float64)[:, None]
        return down_L1DS if core_LESR is None else down_L1DS @ core_LESR
    down_LEDS = np.asarray(leaves['down'], np.float64)
    return down_LEDS if core_LESR is None else down_LEDS @ core_LESR


def up_projections(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """B_t; S_B P_t where there are cores on the output's side.

    Args:
        leaves: of one linear in all layers.

    Returns:
        (L, E, F, R) float64.
    """
    if 'shared_up' in leaves:
        shared_L1SF = np.asarray(leaves['shared_up'], np.float64)[:, None]
        up_LERF = np.asarray(leaves['core'], np.float64) @ shared_L1SF
    else:
        up_LERF = np.asarray(leaves['up'], np.float64)
    return up_LERF.swapaxes(-1, -2)

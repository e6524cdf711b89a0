"""GOAT: experts that start from singular directions of the frozen kernel (Fan et al. 2025).

Dimension letters: D inputs and F outputs of a linear layer, E experts, R rank of one expert,
P = E · R stacked ranks, S number of singular values, L layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.base_structure import Axis, Leaves, Structure, require
from malora_jax.errors import UserError

# ρ, the constant of the authors' code by which the initial update is divided.
_RHO = 10.0
# Singular values below this share of the largest are rounding errors of the eigenvalues.
_SMALLEST_SHARE = 1e-7


class SingularDirections(NamedTuple):
    """Some singular values of a kernel W = Σ_i left_i σ_i right_i, with their singular vectors.

    The arrays of a linear layer in all transformer layers have a leading axis L.

    Attributes:
        left: (D, P) float32, singular vectors on the input side.
        sigma: (P,) float32, singular values.
        right: (P, F) float32, singular vectors on the output side.
    """

    left: np.ndarray
    sigma: np.ndarray
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class GOAT(Structure):
    """Independent experts that start from singular directions of the frozen kernel W.

    The update is c (Σ_t G_t B_t A_t - 1/E Σ_t B_t⁰ A_t⁰) x, where expert t has the gate G_t. Times
    the scale α / R, c = √(3 D / R) / 2 is the paper's s = √(3 η D / R) with η = (α / 2R)². Without
    `width_scale`, c is 1, so that s = α / R as in the authors' scripts.

    The initial values A_t⁰ and B_t⁰ hold singular directions of W, so they depend on the kernel;
    `start_leaves` computes them. They are kept in the frozen parameters `residual_down` and
    `residual_up`. If the gates are 1/E on average, the update is zero on average at the start.

    `initialize` has no kernel. It sets B_t and the residual to zero.

    Attributes:
        width_scale: Whether the factor c depends on the number of inputs D.
    """

    width_scale: bool = True

    factors = ('down', 'up')
    expert_input_factors = ()
    frozen = ('residual_down', 'residual_up')

    def __post_init__(self):
        super().__post_init__()
        require(self.num_experts > 1, 'start', 'svd', "'random' for a single expert")

    @property
    def num_residual_experts(self) -> int:
        """Number of experts of the residual: one for each expert."""
        return self.num_experts

    def check_size(self, inputs: int, outputs: int, linear: str) -> None:
        """Check that the linear layer has a singular direction for each rank of each expert."""
        if self.num_experts * self.rank > min(inputs, outputs):
            raise UserError(
                f'adapter.rank is {self.rank}; it must be at most '
                f'{min(inputs, outputs) // self.num_experts} with {self.num_experts} experts that '
                f"start from singular directions (adapter.start is 'svd'): {linear} has "
                f'{min(inputs, outputs)} of them.'
            )

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of the experts' A_t and B_t, and of their initial values, by name."""
        E, R = self.expert_axis, self.rank_axis
        down, up = (E, inputs, R), (E, R, outputs)
        return {'down': down, 'up': up, 'residual_down': down, 'residual_up': up}

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize A_t at random, and B_t and the residual with zeros, without a kernel."""
        leaves = super().initialize(key, inputs, outputs, beta)
        E, R = self.num_experts, self.rank
        return leaves | {
            'residual_down': jnp.zeros((E, inputs, R)),
            'residual_up': jnp.zeros((E, R, outputs)),
        }

    def segment_indices(self, inputs: int, outputs: int) -> np.ndarray:
        """Return the indices of the experts' singular directions, (P,), in descending order of σ.

        The min(D, F) directions are divided into E segments of equal length. Each expert has the
        first R directions of its segment.

        Args:
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
        """
        starts_E = np.arange(self.num_experts) * (min(inputs, outputs) // self.num_experts)
        return (starts_E[:, None] + np.arange(self.rank)).reshape(-1)

    def start_leaves(self, directions: SingularDirections, scale: float) -> dict[str, np.ndarray]:
        """Return the parameters that depend on the kernel: A_t = √(σ / (s ρ)) Vᵀ, B_t alike with U.

        s = scale · c is the factor of the update, so that s B_t A_t is a part of W, divided by ρ.

        Args:
            directions: Singular directions of the kernels of L layers, at `segment_indices`.
            scale: Scale of the update, `AdapterConfig.scale`.

        Returns:
            Float32 parameters of one linear layer in all layers, (L, ...), by name.
        """
        E, R, (L, D, _) = self.num_experts, self.rank, directions.left.shape
        root_LP = np.sqrt(directions.sigma / np.float32(scale * self._factor_of(D) * _RHO))
        down_LDP, up_LPF = (
            directions.left * root_LP[:, None],
            root_LP[:, :, None] * directions.right,
        )
        down = down_LDP.reshape(L, D, E, R).swapaxes(1, 2)
        up = up_LPF.reshape(L, E, R, -1)
        return {'down': down, 'up': up, 'residual_down': down, 'residual_up': up}

    def update(
        self, projected_NQ: jax.Array, leaves: Leaves, gates_NE: jax.Array | None, scale: jax.Array
    ) -> jax.Array:
        """Return scale · c Σ_t G_t B_t A_t x, (N, F), without the residual."""
        return super().update(projected_NQ, leaves, gates_NE, scale * self._factor(leaves))

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the down-projection A_t and the up-projection c B_t of each expert t."""
        return leaves['down'], self._factor(leaves) * leaves['up']

    def residual(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return A_t⁰ and -c/E B_t⁰ of each expert t."""
        factor = -self._factor(leaves) / self.num_experts
        return leaves['residual_down'], factor * leaves['residual_up']

    def _factor(self, leaves: Mapping[str, Any]) -> float:
        """Return c = √(3 D / R) / 2, or 1 without `width_scale`."""
        return self._factor_of(leaves['down'].shape[-2])

    def _factor_of(self, inputs: int) -> float:
        return math.sqrt(3 * inputs / self.rank) / 2 if self.width_scale else 1.0


def singular_directions(kernel_DF: np.ndarray, indices_P: np.ndarray) -> SingularDirections:
    """Return some singular directions of a kernel.

    They come from the eigenvectors of W Wᵀ or Wᵀ W, whichever is smaller, in float64. This takes
    less than half the time of a float32 SVD of W. Eigenvalues are squares of singular values, but
    float64 leaves singular values of at least 1e-4 of the largest as many digits as float32 has.
    Directions without a singular value above the rounding errors are zero.

    The sign of each pair of vectors is arbitrary. It is chosen so that the largest entry of `right`
    is positive.

    Args:
        kernel_DF: (D, F), kernel.
        indices_P: Indices of the singular values to return, in descending order of size from 0.
    """
    kernel_DF = kernel_DF.astype(np.float64)
    if kernel_DF.shape[0] <= kernel_DF.shape[1]:
        left_DP, sigma_P, right_PF = _from_gram_matrix(kernel_DF, indices_P)
    else:
        right_FP, sigma_P, left_PD = _from_gram_matrix(kernel_DF.T, indices_P)
        left_DP, right_PF = left_PD.T, right_FP.T
    largest_P1 = np.abs(right_PF).argmax(axis=1)[:, None]
    signs_P = np.where(np.take_along_axis(right_PF, largest_P1, axis=1) < 0, -1.0, 1.0)[:, 0]
    found = (left_DP * signs_P, sigma_P, right_PF * signs_P[:, None])
    return SingularDirections(*(array.astype(np.float32) for array in found))


def _from_gram_matrix(
    wide_SI: np.ndarray, indices_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return singular vectors (S, P), values (P,) and vectors (P, I) of a matrix with S ≤ I."""
    square_S, vectors_SS = np.linalg.eigh(wide_SI @ wide_SI.T)
    # Eigenvalues are in ascending order.
    chosen_P = len(square_S) - 1 - indices_P
    sigma_P, left_SP = np.sqrt(np.maximum(square_S[chosen_P], 0)), vectors_SS[:, chosen_P]
    is_real_P = sigma_P > _SMALLEST_SHARE * math.sqrt(max(square_S[-1], 0))
    sigma_P = np.where(is_real_P, sigma_P, 0)
    inverse_P = np.where(is_real_P, 1 / np.where(is_real_P, sigma_P, 1), 0)
    return left_SP, sigma_P, inverse_P[:, None] * (left_SP.T @ wide_SI)

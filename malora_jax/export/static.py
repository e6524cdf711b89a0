"""Static approximation of a routed mixture by one LoRA: each expert is weighted by its mean gate.

The update of a routed mixture differs from token to token, because the router weights the experts
separately for each token, by gates. If the gates are replaced by their means over tokens, the
update is the same for all tokens. `analysis.static_export` measures the mean gates, and the
increase in loss that the approximation causes.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, R rank of an
expert, P rank of two factors, Q number of singular values.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from malora_jax.adapters import AdapterConfig, method
from malora_jax.adapters.dense import DenseExperts
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.adapters.trees import layer_tree
from malora_jax.errors import out_of_range
from malora_jax.export.mixture import check_mixture, dense_experts
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import Decoder


def static_lora(
    trained: TrainedModel, gates: Mapping[str, np.ndarray], rank: int = 0
) -> tuple[TrainedModel, dict[str, Any]]:
    """Return the plain LoRA that is nearest to the mean update of a routed mixture.

    The mean update ΔW is the update with every gate replaced by its mean over tokens. The exact
    rank is the rank that a LoRA needs to represent ΔW without error. If `rank` is smaller, ΔW is
    truncated to ΔW' by singular value decomposition (SVD).

    Args:
        trained: Trained model with a routed mixture of experts.
        gates: (L, E) mean gate of each expert, by name of the linear layer.
        rank: Rank Q of the result; 0 = the exact rank.

    Returns:
        The LoRA, in the form of a trained model; and an entry for the manifest of the export, with
        the fields `approximates` (name of the mixture's method), `exact_rank`, `rank`, and
        `lost_by_rank` (relative error ‖ΔW − ΔW'‖ / ‖ΔW‖ over all linear layers).

    Raises:
        UserError: The model is a single LoRA already, its update is zero, or `rank` is negative or
            above the exact rank.
    """
    adapter = check_mixture(trained, 'static')
    updates = {
        name: decompose(*_mean_update(experts, gates[name]))
        for name, experts in dense_experts(trained)
    }
    exact_rank = max(update.rank for update in updates.values())
    if not 0 <= rank <= exact_rank:
        raise out_of_range('--rank', rank, f'0 or at most {exact_rank}, which is exact')
    rank = rank or exact_rank
    total, lost = (
        sum((update.sigma[:, start:] ** 2).sum() for update in updates.values())
        for start in (0, rank)
    )
    entry = {
        'approximates': trained.method,
        'exact_rank': exact_rank,
        'rank': rank,
        'lost_by_rank': float(np.sqrt(lost / total)) if total else 0.0,
    }
    factors = {name: update.factors(rank) for name, update in updates.items()}
    return _as_lora(trained, adapter, factors), entry


def _mean_update(experts: DenseExperts, gates_LE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors (L, D, P) and (L, P, F) of the sum of all experts, each times its gate.

    The experts of a residual have the gate 1.
    """
    residual = experts.up.shape[1] - gates_LE.shape[1]
    gates_LE = np.pad(gates_LE, ((0, 0), (0, residual)), constant_values=1)
    weighted = experts._replace(up=gates_LE[:, :, None, None] * experts.up)
    return weighted.stacked_down().swapaxes(1, 2), weighted.stacked_up().swapaxes(1, 2)


class Decomposition(NamedTuple):
    """Singular value decomposition of an update, separately in each transformer layer.

    Attributes:
        left: (L, D, Q), left singular vectors.
        sigma: (L, Q), singular values, descending. Those that only rounding errors make positive
            are set to zero.
        right: (L, Q, F), right singular vectors.
    """

    left: np.ndarray
    sigma: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        """Rank of the update, the largest of all transformer layers."""
        return int((self.sigma > 0).sum(axis=1).max())

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of the nearest update of the given rank (Eckart and Young).

        Args:
            rank: Rank of the result. The factors are padded with zeros if it exceeds Q.

        Returns:
            (L, D, rank) down-projections and (L, rank, F) up-projections.
        """
        root_LQ = np.sqrt(self.sigma[:, :rank])
        down = self.left[:, :, :rank] * root_LQ[:, None]
        up = root_LQ[:, :, None] * self.right[:, :rank]
        more = rank - root_LQ.shape[1]
        return np.pad(down, [(0, 0), (0, 0), (0, more)]), np.pad(up, [(0, 0), (0, more), (0, 0)])


def decompose(down_LDP: np.ndarray, up_LPF: np.ndarray) -> Decomposition:
    """Decompose the product of two projections into singular values.

    The computation starts with QR decompositions of the arguments, so that the large (D, F) product
    is never formed.

    Args:
        down_LDP: (L, D, P) float64 down-projections.
        up_LPF: (L, P, F) float64 up-projections.
    """
    q_LDQ, r_LQP = np.linalg.qr(down_LDP)
    p_LFQ, s_LQP = np.linalg.qr(up_LPF.swapaxes(1, 2))
    u, sigma_LQ, vt = np.linalg.svd(r_LQP @ s_LQP.swapaxes(1, 2), full_matrices=False)
    # The tolerance of `np.linalg.matrix_rank`.
    smallest = np.finfo(np.float64).eps * max(q_LDQ.shape[1], p_LFQ.shape[1])
    is_rounding_error = sigma_LQ <= smallest * sigma_LQ.max(axis=1, keepdims=True)
    return Decomposition(
        q_LDQ @ u, np.where(is_rounding_error, 0, sigma_LQ), vt @ p_LFQ.swapaxes(1, 2)
    )


def _as_lora(
    trained: TrainedModel,
    adapter: AdapterConfig,
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> TrainedModel:
    rank = next(iter(factors.values()))[0].shape[-1]
    # Choose alpha so that the scale of the update, alpha / rank, stays the same.
    config = method(
        'lora',
        rank=rank,
        alpha=adapter.scale * rank,
        dropout=adapter.dropout,
        targets=adapter.targets,
    )
    down, up = IndependentExperts.factors
    leaves = {
        target: {
            down: down_LDQ[:, None].astype(np.float32),
            up: up_LQF[:, None].astype(np.float32),
        }
        for target, (down_LDQ, up_LQF) in factors.items()
    }
    return trained._replace(
        model=Decoder(trained.model.config, config, attention=trained.model.attention),
        variables={'params': trained.base.params, 'adapter': layer_tree(leaves)},
        method='lora',
    )

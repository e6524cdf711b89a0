"""Static approximation of a routed mixture by one LoRA: each expert is weighted by its mean gate.

The update of a routed mixture differs from token to token, because the router weights the experts
separately for each token, by gates. If the gates are replaced by their means over tokens, the
update is the same for all tokens. `analysis.static_export` measures the mean gates, and the
increase in loss that the approximation causes.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear layer, Q rank of the
result.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from malora_jax.adapters import AdapterConfig, method
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.errors import UserError, out_of_range
from malora_jax.export.merge import check_nonzero_update, linear_leaves_float64, parent_module
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import Decoder


def check_mixture(trained: TrainedModel) -> AdapterConfig:
    """Check that a trained model is a routed mixture of experts, for which `static_lora` is made.

    Returns:
        The adapter's settings.

    Raises:
        UserError: The model is a single LoRA already, or its update is zero.
    """
    adapter = trained.model.adapter
    if adapter is None or adapter.structure.is_mergeable:
        raise UserError(
            f'{trained.method} is one LoRA already and needs no approximation: use --format=peft, '
            'merged or adapter.'
        )
    check_nonzero_update(trained, 'static')
    return adapter


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
    adapter = check_mixture(trained)
    exact = {
        name: adapter.structure.mean_update(
            linear_leaves_float64(trained.variables, name), gates[name]
        )
        for name in adapter.targets
    }
    exact_rank = max(down.shape[-1] for down, _ in exact.values())
    if not 0 <= rank <= exact_rank:
        raise out_of_range('--rank', rank, f'0 or at most {exact_rank}, which is exact')
    factors = {name: truncate_rank(*pair, rank) for name, pair in exact.items()} if rank else exact
    entry = {
        'approximates': trained.method,
        'exact_rank': exact_rank,
        'rank': rank or exact_rank,
        'lost_by_rank': _relative_error(exact, factors),
    }
    return _as_lora(trained, adapter, factors), entry


def truncate_rank(
    down_LDQ: np.ndarray, up_LQF: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reduce the rank of an update, separately in each transformer layer.

    Among all matrices of the given rank, the product of the returned projections is the nearest to
    the product of the arguments (Eckart and Young). The computation starts with QR decompositions
    of the arguments, so that the large (D, F) product is never formed.

    Args:
        down_LDQ: (L, D, Q) down-projections.
        up_LQF: (L, Q, F) up-projections.
        rank: Rank of the result.

    Returns:
        (L, D, rank) down-projections and (L, rank, F) up-projections.
    """
    q_LDQ, r_LQQ = np.linalg.qr(down_LDQ)
    p_LFQ, s_LQQ = np.linalg.qr(up_LQF.swapaxes(1, 2))
    u, sigma, vt = np.linalg.svd(r_LQQ @ s_LQQ.swapaxes(1, 2), full_matrices=False)
    root = np.sqrt(sigma[:, None, :rank])
    down = q_LDQ @ (u[:, :, :rank] * root)
    up = (vt[:, :rank] * root.swapaxes(1, 2)) @ p_LFQ.swapaxes(1, 2)
    # Pad with zeros if a dimension of the linear layer is smaller than the rank.
    more = rank - down.shape[-1]
    return np.pad(down, [(0, 0), (0, 0), (0, more)]), np.pad(up, [(0, 0), (0, more), (0, 0)])


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
    layers: dict[str, dict[str, Any]] = {}
    for target, (down_LDQ, up_LQF) in factors.items():
        layers.setdefault(parent_module(target), {})[target] = {
            down: down_LDQ[:, None].astype(np.float32),
            up: up_LQF[:, None].astype(np.float32),
        }
    return trained._replace(
        model=Decoder(trained.model.config, config, attention=trained.model.attention),
        variables={'params': trained.base.params, 'adapter': {'layers': layers}},
        method='lora',
    )


def _relative_error(
    exact: Mapping[str, tuple[np.ndarray, np.ndarray]],
    truncated_factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> float:
    """Return the relative error of truncated updates, ‖ΔW − ΔW'‖ / ‖ΔW‖ over all linear layers.

    ΔW' is ΔW truncated to a lower rank by SVD, so that ‖ΔW − ΔW'‖² = ‖ΔW‖² − ‖ΔW'‖².

    Args:
        exact: Down- and up-projections with the product ΔW, by linear layer.
        truncated_factors: Down- and up-projections with the product ΔW', by linear layer.
    """
    exact_square = sum(_square_norm(*pair) for pair in exact.values())
    truncated_square = sum(_square_norm(*pair) for pair in truncated_factors.values())
    return float(np.sqrt(max(0.0, 1 - truncated_square / exact_square))) if exact_square else 0.0


def _square_norm(down_LDQ: np.ndarray, up_LQF: np.ndarray) -> float:
    """Return the squared Frobenius norm of the updates A B, summed over transformer layers.

    A is a matrix of `down_LDQ`, and B is a matrix of `up_LQF`. ‖A B‖² = tr(AᵀA B Bᵀ) avoids the
    large product.
    """
    down_LQQ = down_LDQ.swapaxes(1, 2) @ down_LDQ
    return float((down_LQQ * (up_LQF @ up_LQF.swapaxes(1, 2))).sum())

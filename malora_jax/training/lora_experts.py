"""Start of a run whose experts are trained LoRAs, one per expert.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear, R rank of a LoRA or of
an expert.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.routers import ROUTER
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.errors import UserError
from malora_jax.models import Decoder
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.training.state import TrainState
from malora_jax.training.warm_start import check_rank, check_targets, is_lora, load_trained


class _LoRA(NamedTuple):
    """Projections of a trained LoRA in one linear layer, float32.

    Attributes:
        down: (L, D, R), A transposed.
        up: (L, R, F), B transposed, multiplied by the LoRA's scale and divided by the run's.
    """

    down: np.ndarray
    up: np.ndarray


def start_experts(
    directories: Sequence[pathlib.Path],
    state: TrainState,
    model: Decoder,
    base: LoadedBase,
    router_start: str,
) -> TrainState:
    """Return a state before the first step in which each expert is a trained LoRA.

    With the gate 1, an expert computes exactly the update of its LoRA, whose scale may differ from
    that of the run. If the LoRA has a lower rank than the run, the up-projection of the other ranks
    is zero.

    Args:
        directories: Directories of the LoRAs, exported or saved by `peft`, in the order of the
            experts.
        state: Freshly initialized state of the run.
        model: Decoder of the run; its adapter has as many `IndependentExperts` as there are LoRAs.
        base: Frozen base model.
        router_start: Initial routers, one of `training_config.ROUTER_STARTS`.

    Raises:
        UserError: A directory holds no LoRA, or its LoRA does not fit this run or its base model.
    """
    assert model.adapter is not None
    ours = state.leaves()
    trained = [_load_lora(directory, ours, model, base) for directory in directories]
    leaves: dict[str, jax.Array] = {}
    for linear in trained[0]:
        loras = [each[linear] for each in trained]
        own = {name: ours[f'{linear}/{name}'] for name in model.adapter.leaf_names}
        started = _fill_experts(own, loras)
        if router_start == 'arrow':
            router_LDE = np.stack([leading_directions(*lora) for lora in loras], axis=-1)
            started[ROUTER] = jax.device_put(router_LDE, own[ROUTER].sharding)
        leaves |= {f'{linear}/{name}': leaf for name, leaf in started.items()}
    return state.replace_leaves(leaves)


def leading_directions(down_LDR: np.ndarray, up_LRF: np.ndarray) -> np.ndarray:
    """Return the direction of the inputs that a LoRA changes most, in each layer.

    It is the leading right singular vector of the update B A, found from matrices of R rows: with
    Aᵀ = Q T, it is Q times the leading left singular vector of T Bᵀ.

    Args:
        down_LDR: (L, D, R), A transposed.
        up_LRF: (L, R, F), B transposed.

    Returns:
        (L, D) float32, vectors of length one with any sign; zeros if the update is zero.
    """
    basis_LDR, square_LRR = np.linalg.qr(down_LDR.astype(np.float64))
    left_LRR, sigma_LR, _ = np.linalg.svd(square_LRR @ up_LRF, full_matrices=False)
    direction_LD = (basis_LDR @ left_LRR[..., :1])[..., 0]
    return np.where(sigma_LR[:, :1] > 0, direction_LD, 0).astype(np.float32)


def _load_lora(
    directory: pathlib.Path, ours: Mapping[str, jax.Array], model: Decoder, base: LoadedBase
) -> dict[str, _LoRA]:
    """Load a trained LoRA.

    Args:
        directory: Directory of the LoRA.
        ours: Freshly initialized leaves of the run, by path.
        model: Decoder of the run.
        base: Frozen base model.

    Returns:
        The projections of each linear layer, by its path.

    Raises:
        UserError: The directory holds no LoRA, or its rank or its linear layers do not fit.
    """
    adapter = model.adapter
    assert adapter is not None
    leaves, scale = load_trained(directory, model, base)
    if not is_lora(leaves):
        raise UserError(
            f'training.start_from: {directory} does not hold a LoRA; each of several directories '
            'must hold one, which becomes an expert.'
        )
    check_targets(directory, ours, leaves)
    linears = dict.fromkeys(path.rpartition('/')[0] for path in leaves)
    pairs = {
        linear: [leaves[f'{linear}/{name}'][:, 0] for name in IndependentExperts.factors]
        for linear in linears
    }
    rank = max(down_LDR.shape[-1] for down_LDR, _ in pairs.values())
    check_rank(directory, rank, adapter)
    factor = np.float32(scale / adapter.scale)
    return {
        linear: _LoRA(down_LDR, factor * up_LRF) for linear, (down_LDR, up_LRF) in pairs.items()
    }


def _fill_experts(fresh: Mapping[str, jax.Array], loras: Sequence[_LoRA]) -> dict[str, jax.Array]:
    """Return the projections of all experts of one linear layer.

    Args:
        fresh: Freshly initialized projections of the run: `down`, (L, E, D, R), and `up`,
            (L, E, R, F). If a LoRA has a lower rank, the other ranks of `down` keep these values,
            so that they can learn.
        loras: LoRA of each expert.
    """

    def fill(
        down_LEDR: jax.Array, up_LERF: jax.Array, loras: Sequence[_LoRA]
    ) -> tuple[jax.Array, jax.Array]:
        up_LERF = jnp.zeros_like(up_LERF)
        for expert, (down_LDR, up_LRF) in enumerate(loras):
            down_LEDR = down_LEDR.at[:, expert, :, : down_LDR.shape[-1]].set(down_LDR)
            up_LERF = up_LERF.at[:, expert, : up_LRF.shape[-2]].set(up_LRF)
        return down_LEDR, up_LERF

    names = IndependentExperts.factors
    shardings = tuple(fresh[name].sharding for name in names)
    filled = jax.jit(fill, out_shardings=shardings)(*(fresh[name] for name in names), list(loras))
    return dict(zip(names, filled, strict=True))

"""Rank of MALoRA's shared subspace in sweeps over ranks and numbers of experts.

Section 3.3 of the paper starts from MoLoRA with N experts of rank r. MALoRA spends the same budget
differently: the share λ gives a shared subspace of d = λ r N dimensions, and each of the N experts
gets the rank r̄ = r + (1 − λ) r.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from malora_jax.errors import UserError
from malora_jax.sweeps.config import SweepConfig

_RANK, _EXPERTS, _SUBSPACE = 'adapter.rank', 'adapter.num_experts', 'adapter.shared_rank'


def check_subspace_setting(sweep: SweepConfig, variant: str, config: ConfigDict) -> None:
    """Check that a sweep over ranks or numbers of experts says what happens to the shared subspace.

    It must either set `subspace_share`, from which adapter.shared_rank is computed, or sweep
    adapter.shared_rank.

    Args:
        sweep: The sweep.
        variant: Name of a variant in `runs`.
        config: Config of one of the variant's runs.

    Raises:
        UserError: The sweep does neither of the two, or both.
    """
    fields = {*sweep.fields_of(variant)}
    changes = {_RANK, _EXPERTS} & fields
    is_open = sweep.subspace_share is None and _SUBSPACE not in fields
    if changes and is_open and _has_subspace(config):
        raise UserError(
            f'{min(changes)} is swept, but the sweep does not say whether shared_rank scales with '
            'it: set subspace_share to λ in d = λ r N, or to 0.0 to keep d fixed.'
        )
    if sweep.subspace_share and _SUBSPACE in fields:
        raise UserError(
            f'{_SUBSPACE} cannot be swept when subspace_share is set, which determines it.'
        )


def set_subspace_ranks(config: ConfigDict, share: float, values: Mapping[str, Any]) -> None:
    """Set adapter.rank (r̄) and adapter.shared_rank (d) of a run that has a shared subspace.

    Args:
        config: Config of the run, changed in place.
        share: Share λ of the rank budget that the subspace gets.
        values: Values that the sweep sets. Here, `adapter.rank` is the rank budget r, not r̄. If the
            sweep does not set it, r is computed from adapter.rank in the config, which is r̄.

    Raises:
        UserError: r̄ or d would not be an integer.
    """
    if not _has_subspace(config):
        return
    adapter = config.adapter
    budget = values.get(_RANK, adapter.rank / (2 - share))
    rank, shared_rank = (2 - share) * budget, share * budget * adapter.num_experts
    for name, symbol, value in ((_RANK, 'r̄', rank), (_SUBSPACE, 'd', shared_rank)):
        if abs(value - round(value)) > 1e-6:
            raise UserError(
                f'subspace_share {share:g} with r = {budget:g} and N = {adapter.num_experts} '
                f'makes {symbol} {value:g}; {name} must be a whole number.'
            )
    adapter.rank, adapter.shared_rank = round(rank), round(shared_rank)


def _has_subspace(config: ConfigDict) -> bool:
    """Return whether the experts share a down-projection, and each has its own core matrix."""
    return config.adapter.shared_rank > 0 and config.adapter.subspace == 'down'

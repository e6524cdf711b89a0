"""Named methods, such as LoRA and MALoRA: rows of adapter settings."""

import dataclasses
from typing import Any

from malora_jax import errors
from malora_jax.adapters.config import AdapterConfig
from malora_jax.adapters.settings import AdapterSettings

_TOP2_OF_8 = dict(num_experts=8, top_k=2)
# If every token uses all experts, their loads are equal and the load-balancing loss is constant.
_DENSE = dict(num_experts=8, top_k=8, balance_weight=0.0)

_RANKS = dict(rank=1, subspace='ranks', balance_weight=0.0)

# Settings by method: Tables 8 and 9 of the MALoRA paper, then the ablations of Table 3. α is
# 2 · rank in every row of the tables, so `method` also uses it where the paper does not give α.
METHODS: dict[str, dict[str, Any]] = {
    'lora': dict(num_experts=1, top_k=1, rank=64),
    'dora': dict(num_experts=1, top_k=1, rank=64, magnitude=True),
    'asylora': dict(num_experts=1, top_k=1, rank=128, frozen=('down',)),
    'molora': dict(_TOP2_OF_8, rank=8),
    'moasylora': dict(_TOP2_OF_8, rank=16, frozen=('down',)),
    'malora': dict(_TOP2_OF_8, rank=12, shared_rank=32),
    'malora_small': dict(_TOP2_OF_8, rank=8, shared_rank=22),
    'molora_r12': dict(_TOP2_OF_8, rank=12),
    'molora_same_down': dict(_TOP2_OF_8, rank=12, identical_start=True),
    'malora_fixed_shared': dict(_TOP2_OF_8, rank=16, shared_rank=32, frozen=('shared_down',)),
    'malora_symmetric': dict(_TOP2_OF_8, rank=8, shared_rank=64),
    'malora_unshared': dict(_TOP2_OF_8, rank=12, shared_rank=32, subspace='own'),
    'malora_fixed_core': dict(_TOP2_OF_8, rank=12, shared_rank=32, frozen=('core',)),
    'malora_shared_up': dict(_TOP2_OF_8, rank=12, shared_rank=32, subspace='up'),
    # Not in the paper. HydraLoRA's own script has 4 heads of rank 4. For comparability, this row
    # has MALoRA's number of experts and rank.
    'hydralora': dict(_DENSE, rank=12, shared_rank=12, subspace='heads'),
    'hydralora_top2': dict(_TOP2_OF_8, rank=12, shared_rank=12, subspace='heads', renormalize=True),
    'alora': dict(_DENSE, rank=16, shared_rank=16, subspace='tails'),
    # λ is that of the authors' script.
    'adamole': dict(num_experts=8, top_k=8, rank=8, scores='threshold', renormalize=True),
    # 44 ranks have about as many parameters as the other methods; the paper has 64.
    'smora': dict(
        _RANKS,
        num_experts=44,
        shared_rank=44,
        top_k=8,
        scores='sigmoid',
        renormalize=True,
        gates_sum_to_k=True,
        bias_rate=1e-5,
    ),
    'flylora': dict(
        _RANKS,
        num_experts=128,
        shared_rank=128,
        top_k=32,
        scores='magnitude',
        equal_gates=True,
        gates_sum_to_k=True,
        bias_rate=1e-3,
        start='sparse',
        frozen=('shared_down',),
    ),
    'align_lora': dict(num_experts=1, top_k=1, rank=64, alignment_weight=0.2),
    'remix': dict(_TOP2_OF_8, rank=8, balance_weight=0.0, equal_gates=True, samples=2),
    # The temperature and the number of up-projections of the authors' script. With six tasks, rank
    # 30 has about as many parameters as the other methods.
    'mtl_lora': dict(
        num_experts=3,
        top_k=3,
        rank=30,
        shared_rank=30,
        subspace='tasks',
        task_temperature=0.1,
        balance_weight=0.0,
    ),
    'moslora': dict(num_experts=1, top_k=1, rank=64, shared_rank=64, subspace='both'),
    'comol': dict(_DENSE, rank=64, shared_rank=64, subspace='both', router_input='first'),
    'd2mora': dict(
        num_experts=3,
        top_k=3,
        balance_weight=0.0,
        rank=12,
        num_up_experts=8,
        similarity_weight=1e-4,
    ),
    'goat': dict(_TOP2_OF_8, rank=8, start='svd', renormalize=True),
    # The number of heads of the authors' script for R-LoRA. Rank 20 has as many parameters as
    # LoRA of rank 64.
    'mlora_heads': dict(
        num_experts=5,
        top_k=5,
        rank=20,
        shared_rank=20,
        subspace='summed_heads',
        head_dropout=0.2,
        balance_weight=0.0,
    ),
    # The methods molora and malora with token dispatch, as in the paper.
    'molora_dispatch': dict(_TOP2_OF_8, rank=8, dispatch=True),
    'malora_dispatch': dict(_TOP2_OF_8, rank=12, shared_rank=32, dispatch=True),
}


def method(name: str, **overrides: Any) -> AdapterConfig:
    """Return the adapter configuration of a named method.

    For example, MALoRA with other ranks:

        config = method('malora', rank=16, shared_rank=48)

    Args:
        name: Name of the method, from `METHODS`.
        **overrides: Values of fields of `AdapterSettings` that differ from the method's. Without
            `alpha`, α is twice the rank, as in the paper's tables.

    Raises:
        UserError: The method or a field is unknown, or a value has the wrong type, is out of range,
            or contradicts another field.
    """
    if name not in METHODS:
        raise errors.unknown_name('method', name, METHODS)
    fields = [field.name for field in dataclasses.fields(AdapterSettings)]
    for key in overrides:
        if key not in fields:
            raise errors.unknown_name('adapter field', key, fields)
    settings = METHODS[name] | overrides
    rank = settings['rank']
    # If the rank is not an integer, the type check of `AdapterSettings` raises the error.
    alpha = 2.0 * rank if isinstance(rank, int) else 1.0
    return AdapterSettings(**{'alpha': alpha, **settings}).build()

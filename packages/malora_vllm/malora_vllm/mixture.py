"""The `mixture` block of an adapter_config.json, version 1."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

VERSION = 1
# Width of the gates on a GPU, where shapes are fixed before the first adapter is loaded.
MAX_EXPERTS = 64
# 'softmax': the router's probabilities of the top-k experts; 'renormalized': these probabilities
# scaled to sum to one; 'equal': 1/K each.
GATES = ('softmax', 'renormalized', 'equal')
# Names of the linear layers that can be adapted.
TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A routed mixture of LoRA experts: y = W x + scale · Σ_t g_t B_t A_t x.

    Attributes:
        num_experts: Number of experts, E.
        rank: Rank of each expert, R.
        top_k: Number of active experts per token, K.
        scale: Factor of the update.
        gates: Kind of gates of the top-k experts, one of `GATES`.
        targets: Names of the adapted linear layers, from `TARGETS`.
        router_parts: 1 if lora_A has the router's rows once; 2 if their bfloat16 remainders follow.
    """

    num_experts: int
    rank: int
    top_k: int
    scale: float
    gates: str
    targets: tuple[str, ...]
    router_parts: int

    @property
    def total_rank(self) -> int:
        """Number of rows of lora_A: the experts' rows, then the router's."""
        return self.num_experts * (self.rank + self.router_parts)


def parse_mixture(block: Any) -> Mixture:
    """Return the mixture that a `mixture` block describes.

    Args:
        block: Value of the key `mixture` in an adapter_config.json.

    Raises:
        ValueError: The block has an unknown version, a missing or invalid field, or too many
            experts.
    """
    if not isinstance(block, Mapping):
        raise _invalid('mixture', block, 'an object')
    version = _field(block, 'version', _is_positive_integer, 'a positive integer')
    if version != VERSION:
        raise ValueError(
            f'mixture.version is {version}, but this malora_vllm reads version {VERSION}: upgrade '
            'malora_vllm.'
        )
    _field(block, 'method', _is_text, 'a non-empty string')
    base = _field(block, 'base', lambda value: isinstance(value, Mapping), 'an object')
    _field(base, 'name', _is_text, 'a non-empty string', parent='mixture.base')
    _field(
        base, 'fingerprint', _is_fingerprint, '32 hexadecimal digits or null', parent='mixture.base'
    )
    num_experts = _field(block, 'num_experts', _is_positive_integer, 'a positive integer')
    if num_experts > MAX_EXPERTS:
        raise ValueError(
            f'mixture.num_experts is {num_experts}, but malora_vllm serves at most {MAX_EXPERTS} '
            'experts: train a mixture with fewer experts.'
        )
    return Mixture(
        num_experts=num_experts,
        rank=_field(block, 'rank', _is_positive_integer, 'a positive integer'),
        top_k=_field(
            block,
            'top_k',
            lambda value: _is_positive_integer(value) and value <= num_experts,
            f'an integer from 1 to num_experts = {num_experts}',
        ),
        scale=float(_field(block, 'scale', _is_positive_number, 'a finite positive number')),
        gates=_field(block, 'gates', lambda value: value in GATES, f'one of {", ".join(GATES)}'),
        targets=tuple(
            _field(
                block, 'targets', _are_targets, f'a list without repeats from {", ".join(TARGETS)}'
            )
        ),
        router_parts=_field(
            block,
            'router_parts',
            lambda value: _is_positive_integer(value) and value <= 2,
            '1 or 2',
        ),
    )


def _field(
    block: Mapping[str, Any],
    key: str,
    is_valid: Callable[[Any], bool],
    expected: str,
    parent: str = 'mixture',
) -> Any:
    """Return a field of a block; raise a ValueError that names it if it is missing or invalid."""
    if key not in block:
        raise ValueError(
            f'adapter_config.json has no {parent}.{key}, which must be {expected}: export the '
            'adapter again.'
        )
    if not is_valid(block[key]):
        raise _invalid(f'{parent}.{key}', block[key], expected)
    return block[key]


def _invalid(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(
        f'adapter_config.json has {name} = {str(value)[:50]!r}, which must be {expected}: export '
        'the adapter again.'
    )


def _is_positive_integer(value: Any) -> bool:
    # JSON's true is not a number, but Python's bool is an int.
    return type(value) is int and value > 0


def _is_positive_number(value: Any) -> bool:
    # An int can be above the largest float; math.isfinite raises an OverflowError then.
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ''


def _are_targets(value: Any) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and all(target in TARGETS for target in value)
        and len(set(value)) == len(value)
    )


def _is_fingerprint(value: Any) -> bool:
    # The fingerprint of a quantized base model is not known.
    return value is None or (
        isinstance(value, str) and re.fullmatch('[0-9a-f]{32}', value) is not None
    )

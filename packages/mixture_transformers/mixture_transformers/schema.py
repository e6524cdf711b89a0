"""The block `mixture` of config.json: fields and validation."""

import dataclasses
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

VERSION = 1
GATES = ('softmax', 'renormalized', 'equal')
# Linear layers that can be adapted, with the submodule of a decoder layer that holds them.
TARGETS = {
    **dict.fromkeys(('q_proj', 'k_proj', 'v_proj', 'o_proj'), 'self_attn'),
    **dict.fromkeys(('gate_proj', 'up_proj', 'down_proj'), 'mlp'),
}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Settings of the routed mixtures of a model.

    Attributes:
        num_experts: Number of experts E of each adapted linear layer.
        rank: Rank R of one expert.
        top_k: Number of active experts per token, K.
        scale: Factor of the update, positive.
        gates: Kind of gates of the top-k experts, one of `GATES`: 'softmax', their probabilities;
            'renormalized', these probabilities scaled to sum to one; or 'equal', 1/K each.
        targets: Names of the adapted linear layers, keys of `TARGETS`.
        base_name: Path or Hub name of the base model.
        base_fingerprint: Fingerprint of the base model's weights, 32 hexadecimal digits.
    """

    num_experts: int
    rank: int
    top_k: int
    scale: float
    gates: str
    targets: tuple[str, ...]
    base_name: str
    base_fingerprint: str

    def module_names(self, num_layers: int) -> Iterator[str]:
        """Yield the name of each adapted linear layer in a causal language model."""
        for layer in range(num_layers):
            for target in self.targets:
                yield f'model.layers.{layer}.{TARGETS[target]}.{target}'

    def tensor_shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
        """Return the shapes of the mixture's tensors in one adapted linear layer, by name.

        Args:
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
        """
        stacked_ranks = self.num_experts * self.rank
        return {
            'down.weight': (stacked_ranks, inputs),
            'router.weight': (self.num_experts, inputs),
            'up.weight': (outputs, stacked_ranks),
        }


def parse_mixture(block: Any) -> Mixture:
    """Return the settings in the block `mixture` of config.json.

    Fields that this version does not know are ignored.

    Raises:
        ValueError: The block is not an object, has another version, or lacks a field; or a field
            has a wrong type or is out of range.
    """
    if not isinstance(block, Mapping):
        raise ValueError(
            'config.json has no object `mixture`: load a model that was exported with '
            '--format=transformers.'
        )
    version = _field(block, 'version', _is_positive_integer, 'a positive integer')
    if version != VERSION:
        raise ValueError(
            f'config.json: mixture.version is {version}, but this release of mixture_transformers '
            f'reads version {VERSION}: upgrade mixture_transformers.'
        )
    _field(block, 'method', _is_text, 'a non-empty string')
    num_experts, rank, top_k = (
        _field(block, name, _is_positive_integer, 'a positive integer')
        for name in ('num_experts', 'rank', 'top_k')
    )
    if top_k > num_experts:
        raise ValueError(
            f'config.json: mixture.top_k is {top_k}; it must be at most num_experts = '
            f'{num_experts}: export the model again.'
        )
    _field(block, 'router_parts', lambda value: _is_positive_integer(value) and value == 1, '1')
    base = _field(block, 'base', lambda value: isinstance(value, Mapping), 'an object')
    return Mixture(
        num_experts=num_experts,
        rank=rank,
        top_k=top_k,
        scale=float(_field(block, 'scale', _is_positive_number, 'a finite positive number')),
        gates=_field(block, 'gates', GATES.__contains__, f'one of {", ".join(GATES)}'),
        targets=tuple(
            _field(
                block, 'targets', _are_targets, f'a list without repeats from {", ".join(TARGETS)}'
            )
        ),
        base_name=_field(base, 'name', _is_text, 'a non-empty string', 'base.'),
        base_fingerprint=_field(
            base, 'fingerprint', _is_fingerprint, '32 hexadecimal digits', 'base.'
        ),
    )


def _field(
    block: Mapping[str, Any],
    name: str,
    is_valid: Callable[[Any], bool],
    description: str,
    prefix: str = '',
) -> Any:
    """Return a field of the block, after checking it.

    Args:
        block: Block `mixture` or an object inside it.
        name: Name of the field.
        is_valid: Function that returns whether a value is valid.
        description: Description of the valid values, which follows 'it must be' in the message.
        prefix: Path of the object inside block `mixture`, with a dot at the end.

    Raises:
        ValueError: The field is missing or its value is not valid.
    """
    if name not in block:
        raise ValueError(
            f'config.json has no field mixture.{prefix}{name}: export the model again.'
        )
    value = block[name]
    if not is_valid(value):
        raise ValueError(
            f'config.json: mixture.{prefix}{name} is {reprlib.repr(value)}; it must be '
            f'{description}: export the model again.'
        )
    return value


def _is_positive_integer(value: Any) -> bool:
    # JSON's true is not a number, but Python's bool is an int.
    return type(value) is int and value >= 1


def _is_positive_number(value: Any) -> bool:
    # JSON's integers may exceed the largest float.
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch('[0-9a-f]{32}', value) is not None


def _are_targets(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(target, str) and target in TARGETS for target in value)
        and len(set(value)) == len(value)
    )

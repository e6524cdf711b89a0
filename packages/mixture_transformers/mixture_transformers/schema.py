"""The block `mixture` of config.json: fields and validation."""

import dataclasses
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

VERSION = 1
GATES = ('softmax', 'renormalized', 'equal')
SCORES = ('softmax', 'sigmoid', 'threshold', 'magnitude', 'absolute')
# Ends of the names of a mixture's tensors; a second router is named router.up.
MIXTURE_LEAVES = ('.down.weight', '.router.weight', '.router.offset.weight', '.up.weight')
# Linear layers that can be adapted, with the submodule of a decoder layer that holds them.
TARGETS = {
    **dict.fromkeys(('q_proj', 'k_proj', 'v_proj', 'o_proj'), 'self_attn'),
    **dict.fromkeys(('gate_proj', 'up_proj', 'down_proj'), 'mlp'),
}


@dataclasses.dataclass(frozen=True)
class Gates:
    """Settings of the gates g_t of the experts t.

    In config.json, a kind alone is short for the other settings' defaults.

    Attributes:
        kind: Kind of gates of the top-k experts, one of `GATES`: 'softmax', their scores;
            'renormalized', these scores scaled to sum to one; or 'equal', 1/K each.
        scores: Scores that choose the experts, one of `SCORES`: 'softmax' of the router's logits;
            'absolute', the softmax of their absolute values; 'sigmoid' of each logit; 'threshold',
            the softmax minus a threshold, which the last logit determines, for the experts above
            it; or 'magnitude', the absolute value of each logit.
        factor: Factor of all gates, such as K for gates that sum to K.
        has_offset: Whether the router has a bias. It is added to the scores that choose experts,
            but not to their gates; or to the logit of the threshold.
        offset_in_gates: Whether the bias is part of the gates, too: the gates are then the scores
            that choose experts.
        num_residual_experts: Number of experts after the others, unknown to the router, whose gate
            is 1 for every token.
        num_up_experts: Number of up-projections U, to which a second router gives gates; 0 if each
            expert has its own.
    """

    kind: str
    scores: str = 'softmax'
    factor: int = 1
    has_offset: bool = False
    offset_in_gates: bool = False
    num_residual_experts: int = 0
    num_up_experts: int = 0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Settings of the routed mixtures of a model.

    Attributes:
        num_experts: Number of experts E of each adapted linear layer.
        rank: Rank R of one expert.
        top_k: Number of active experts per token, K.
        scale: Factor of the update, positive.
        gates: Settings of the gates.
        targets: Names of the adapted linear layers, keys of `TARGETS`.
        base_name: Path or Hub name of the base model.
        base_fingerprint: Fingerprint of the base model's weights, 32 hexadecimal digits.
    """

    num_experts: int
    rank: int
    top_k: int
    scale: float
    gates: Gates
    targets: tuple[str, ...]
    base_name: str
    base_fingerprint: str

    def module_names(self, num_layers: int) -> Iterator[str]:
        """Yield the name of each adapted linear layer in a causal language model."""
        for layer in range(num_layers):
            for target in self.targets:
                yield f'model.layers.{layer}.{TARGETS[target]}.{target}'

    @property
    def num_logits(self) -> int:
        """Number of logits of the router, M: one per expert, and one for a threshold."""
        return self.num_experts + (self.gates.scores == 'threshold')

    @property
    def num_down_projections(self) -> int:
        """Number of down-projections: those of the experts and of the residual."""
        return self.num_experts + self.gates.num_residual_experts

    @property
    def num_up_projections(self) -> int:
        """Number of up-projections: as many as down-projections, without a second router."""
        return self.gates.num_up_experts or self.num_down_projections

    def tensor_shapes(self, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the mixture's tensors in one adapted linear layer, by name.

        Args:
            inputs: Number of inputs of the linear layer, D.
            outputs: Number of outputs of the linear layer, F.
        """
        shapes: dict[str, tuple[int, ...]] = {
            'down.weight': (self.num_down_projections * self.rank, inputs),
            'router.weight': (self.num_logits, inputs),
            'up.weight': (outputs, self.num_up_projections * self.rank),
        }
        if self.gates.has_offset:
            shapes['router.offset.weight'] = (self.num_logits,)
        if self.gates.num_up_experts:
            shapes['router.up.weight'] = (self.gates.num_up_experts, self.rank)
        return shapes


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
        gates=_parse_gates(block),
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


def _parse_gates(block: Mapping[str, Any]) -> Gates:
    """Return the settings in the field `gates`: an object, or a kind alone.

    Raises:
        ValueError: The field is missing, or a setting is missing or out of range.
    """
    if not isinstance(block.get('gates'), Mapping):
        return Gates(_one_of(GATES, block, 'gates'))
    gates, count = block['gates'], 'an integer of at least 0'
    return Gates(
        kind=_one_of(GATES, gates, 'kind', 'gates.'),
        scores=_one_of(SCORES, gates, 'scores', 'gates.'),
        factor=_field(gates, 'factor', _is_positive_integer, 'a positive integer', 'gates.'),
        has_offset=_field(gates, 'has_offset', _is_bool, 'true or false', 'gates.'),
        offset_in_gates=_field(gates, 'offset_in_gates', _is_bool, 'true or false', 'gates.'),
        num_residual_experts=_field(gates, 'num_residual_experts', _is_count, count, 'gates.'),
        num_up_experts=_field(gates, 'num_up_experts', _is_count, count, 'gates.'),
    )


def _one_of(choices: tuple[str, ...], block: Mapping[str, Any], name: str, prefix: str = '') -> str:
    """Return a field that holds one of several names; see `_field`."""
    return _field(block, name, choices.__contains__, f'one of {", ".join(choices)}', prefix)


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


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


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

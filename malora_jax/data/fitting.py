"""How many tokens a task's examples take, and whether they fit into a row."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tqdm

from malora_jax.data.encoding import cut_turns, encode_turns, positions_of
from malora_jax.data.examples import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError

_ROW = 'data.sequence_length'


@dataclasses.dataclass(frozen=True)
class Size:
    """What some examples take; padding is not counted.

    Attributes:
        examples: how many there are.
        tokens: positions that all of them take, after truncation.
        answer_tokens: those among them that carry loss.
        truncated: examples that were too long.
        longest: positions of the longest, before truncation.
        lengths: Positions of each example, after truncation.
    """

    examples: int
    tokens: int
    answer_tokens: int
    truncated: int
    longest: int
    lengths: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32), repr=False, compare=False
    )

    def counts(self) -> dict[str, int]:
        """Return everything but the lengths, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != 'lengths'
        }


def shortened(example: Example, tokenizer: Tokenizer, template: Template, length: int) -> Example:
    """A held-out chat without the last turns that do not fit: an earlier question is asked then.

    Args:
        example: perhaps of several turns.
        tokenizer: makes the tokens.
        template: the text around questions and answers.
        length: positions that there are.

    Returns:
        The example; a single turn stays as it is.
    """
    turns = encode_turns(tokenizer, template, example) if example.earlier else []
    while example.earlier and positions_of(turns) > length:
        turns.pop()
        *earlier, (question, answer) = example.earlier
        metadata = {**example.metadata, 'answers': (answer,)}
        example = Example(question, answer, metadata, tuple(earlier))
    return example


def measure_examples(
    name: str,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    sequence_length: int,
    truncate: bool = False,
    room: str = _ROW,
) -> Size:
    """Tokenises examples of one task and counts.

    Args:
        name: of the task, for messages.
        examples: any number.
        tokenizer: makes the tokens.
        template: the text around questions and answers.
        sequence_length: T.
        truncate: whether `encode_example` cuts examples that are longer.
        room: what `sequence_length` is, for messages.

    Raises:
        UserError: some do not fit and are not to be cut: how many, the longest with its row if it
            is from a file, and the sequence length that would do.
    """
    answer_tokens = longest = 0
    lengths: list[int] = []
    too_long: list[tuple[int, Example]] = []
    for example in tqdm.tqdm(examples, f'tokenise {name}', unit=' examples', delay=1.0):
        turns = encode_turns(tokenizer, template, example)
        positions = positions_of(turns)
        longest = max(longest, positions)
        if positions > sequence_length:
            too_long.append((positions, example))
            turns = cut_turns(turns, sequence_length, tokenizer.bos_id)
        lengths.append(positions_of(turns))
        answer_tokens += sum(len(turn.answer) for turn in turns)
    if too_long and not truncate:
        needed, example = max(too_long, key=lambda item: item[0])
        row = f'{example.metadata["row"]}, ' if 'row' in example.metadata else ''
        raise UserError(
            f'Task {name!r}: {room} is {sequence_length}; it must be at least {needed} for the '
            f'longest ({row}{example.opening[:40]!r}) of {len(too_long):,} examples that do not '
            f'fit{", or data.truncate True" if room == _ROW else ""}.'
        )
    return Size(
        len(examples),
        sum(lengths),
        answer_tokens,
        len(too_long),
        longest,
        np.array(lengths, np.int32),
    )

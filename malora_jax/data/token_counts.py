"""Token counts of a task's examples, and the check that they fit into the sequence length."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from malora_jax.data.encoding import count_positions, encode_turns, truncate_turns
from malora_jax.data.examples import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import TokenizerProtocol
from malora_jax.errors import UserError
from malora_jax.progress import track

_ROW = 'data.sequence_length'


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Token counts of a set of examples, without padding.

    For example::

        counts = measure_examples('mine', split.train, tokenizer, get_template('plain'), 256)
        counts.to_dict()['tokens']  # 31200

    Attributes:
        examples: Number of examples.
        tokens: Number of positions of all examples together, after truncation.
        answer_tokens: Number of those positions that have loss.
        truncated: Number of examples that were too long.
        longest: Number of positions of the longest example, before truncation.
        lengths: Number of positions of each example, after truncation, shape (examples,), int32.
        cut_first_turns: Number of examples whose first question and answer are too long together,
            so that the beginning of the question, the end of the answer, or both are missing.
        dropped_answers: Number of answers of later turns that were too long, so that nothing is
            learned from them.
    """

    examples: int
    tokens: int
    answer_tokens: int
    truncated: int
    longest: int
    lengths: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32), repr=False, compare=False
    )
    cut_first_turns: int = 0
    dropped_answers: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return all fields but `lengths`, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != 'lengths'
        }


def truncate_conversation(
    example: Example, tokenizer: TokenizerProtocol, template: Template, length: int
) -> Example:
    """Drop the last turns of a held-out conversation until it fits.

    The last remaining question is then the held-out question.

    For example::

        held_out = [
            truncate_conversation(example, tokenizer, template, 4096) for example in split.held_out
        ]

    Args:
        example: Held-out example, of one or several turns.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        length: Maximum number of positions, such as the model's context length.

    Returns:
        The truncated example. A single turn is returned unchanged, even if it is too long.
    """
    turns = encode_turns(tokenizer, template, example) if example.history else []
    while example.history and count_positions(turns) > length:
        turns.pop()
        *earlier, (question, answer) = example.history
        metadata = {**example.metadata, 'answers': (answer,)}
        example = Example(question, answer, metadata, tuple(earlier))
    return example


def measure_examples(
    name: str,
    examples: Sequence[Example],
    tokenizer: TokenizerProtocol,
    template: Template,
    sequence_length: int,
    truncate: bool = False,
    limit_name: str = _ROW,
) -> TokenCounts:
    """Tokenize the examples of one task and return their token counts.

    For example::

        size = measure_examples('mine', split.train, tokenizer, get_template('plain'), 256)

    Args:
        name: Name of the task, for messages.
        examples: Examples of the task; may be empty.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        sequence_length: T, the maximum number of positions of an example.
        truncate: Whether `encode_example` truncates longer examples.
        limit_name: Name of the limit `sequence_length` in the error message.

    Raises:
        UserError: Some examples are too long and `truncate` is False. The message has the number
            of these examples, the beginning of the longest one (and its row in a file), and the
            sequence length that it needs.
    """
    answer_tokens = longest = cut_first_turns = dropped_answers = 0
    lengths: list[int] = []
    too_long: list[tuple[int, Example]] = []
    for example in track(examples, f'tokenize {name}', 'example'):
        turns = encode_turns(tokenizer, template, example)
        positions = count_positions(turns)
        longest = max(longest, positions)
        if positions > sequence_length:
            too_long.append((positions, example))
            cut_first_turns += count_positions(turns[:1]) > sequence_length
            dropped_answers += len(turns)
            turns = truncate_turns(turns, sequence_length, tokenizer.bos_id)
            dropped_answers -= len(turns)
        lengths.append(count_positions(turns))
        answer_tokens += sum(len(turn.answer) for turn in turns)
    if too_long and not truncate:
        needed, example = max(too_long, key=lambda item: item[0])
        row = f'{example.metadata["row"]}, ' if 'row' in example.metadata else ''
        raise UserError(
            f'Task {name!r}: {limit_name} is {sequence_length}; it must be at least {needed} for '
            f'the longest ({row}{example.first_question[:40]!r}) of {len(too_long):,} examples '
            f'that do not fit{", or data.truncate True" if limit_name == _ROW else ""}.'
        )
    return TokenCounts(
        len(examples),
        sum(lengths),
        answer_tokens,
        len(too_long),
        longest,
        np.array(lengths, np.int32),
        cut_first_turns,
        dropped_answers,
    )

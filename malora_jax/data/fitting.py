"""All examples of a task as arrays, or what it takes that they fit."""

from collections.abc import Sequence

import numpy as np
import tqdm

from malora_jax.data.encoding import TooLongError, encode_example
from malora_jax.data.tasks import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError


def encode_examples(
    name: str,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    task_id: int,
    sequence_length: int,
) -> list[dict[str, np.ndarray]]:
    """Encodes examples of one task by `encode_example`.

    Args:
        name: of the task, for messages.
        examples: any number.
        tokenizer: makes the tokens.
        template: the text around questions and answers.
        task_id: the number of the task in the mixture.
        sequence_length: T; no example is cut.

    Raises:
        UserError: some do not fit: how many, the longest with its row if it is from a file, and
            the sequence length that would do.
    """
    encoded, too_long = [], []
    for example in tqdm.tqdm(examples, f'tokenise {name}', unit=' examples', delay=1.0):
        try:
            encoded.append(encode_example(tokenizer, template, example, task_id, sequence_length))
        except TooLongError as error:
            too_long.append((error.needed, example))
    if not too_long:
        return encoded
    needed, longest = max(too_long, key=lambda item: item[0])
    row = f'{longest.metadata["row"]}, ' if 'row' in longest.metadata else ''
    raise UserError(
        f'Task {name!r}: data.sequence_length is {sequence_length}; it must be at least {needed} '
        f'for the longest ({row}{longest.question[:40]!r}) of {len(too_long):,} examples that do '
        'not fit.'
    )

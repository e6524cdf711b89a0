"""Examples as arrays of tokens, with a target for every input.

Inputs and targets are shifted against each other here, example by example, so that packing several
into a row never makes one predict the first token of the next.

T is the number of tokens of a prompt and its completion, without the token that ends them.
"""

from typing import Protocol

import numpy as np

from malora_jax.data.tasks import Example
from malora_jax.data.templates import Template
from malora_jax.errors import UserError


class Tokenizer(Protocol):
    """What the data need of a tokenizer."""

    eos_id: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; special tokens written in it are recognised, none are added."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The token written so, or None."""
        ...


def end_id(tokenizer: Tokenizer, template: Template) -> int:
    """The token that ends an answer.

    Raises:
        UserError: the tokenizer does not have the template's.
    """
    if template.end is None:
        return tokenizer.eos_id
    token = tokenizer.token_to_id(template.end)
    if token is None:
        raise UserError(
            f'Template {template.name!r} ends answers with {template.end!r}, '
            'which is not a token of this tokenizer.'
        )
    return token


def encode_prompt(tokenizer: Tokenizer, template: Template, question: str) -> list[int]:
    """The tokens that generation starts from, the same as in training."""
    return tokenizer.encode(template.prompt(question))


def encode_example(
    tokenizer: Tokenizer, template: Template, example: Example, task_id: int, max_length: int
) -> dict[str, np.ndarray]:
    """One example as arrays of shape (T,), T ≤ `max_length`.

    Prompt and completion are tokenised apart, as generation has only the prompt.

    Args:
        tokenizer: makes the tokens.
        template: the text around question and answer.
        example: the question and its answer.
        task_id: the number of its task in the mixture.
        max_length: the most positions that the example may take.

    Returns:
        `inputs`, `targets` (the next token of each) and `task_ids` in int32, and `loss_mask` in
        float32: 1 where the target belongs to the answer or ends it, else 0.

    Raises:
        UserError: the example is longer than `max_length`.
    """
    prompt = encode_prompt(tokenizer, template, example.question)
    completion = tokenizer.encode(template.completion(example.answer))
    needed = len(prompt) + len(completion)
    if needed > max_length:
        raise UserError(
            f'data.sequence_length is {max_length}; it must be at least {needed} for the example '
            f'{example.question[:40]!r}.'
        )
    tokens = np.array([*prompt, *completion, end_id(tokenizer, template)], np.int32)
    positions = np.arange(len(tokens) - 1)
    return {
        'inputs': tokens[:-1],
        'targets': tokens[1:],
        'loss_mask': (positions >= len(prompt) - 1).astype(np.float32),
        'task_ids': np.full(positions.shape, task_id, np.int32),
    }

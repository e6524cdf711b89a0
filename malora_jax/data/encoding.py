"""Examples as arrays of tokens, with a target for every input.

Inputs and targets are shifted against each other here, example by example, so that packing several
into a row never makes one predict the first token of the next.

T is the number of tokens of a prompt and its completion, without the token that ends them.
"""

import numpy as np

from malora_jax.data.tasks import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError


def end_id(tokenizer: Tokenizer, template: Template) -> int:
    """The token that ends an answer.

    Raises:
        UserError: the tokenizer does not have the template's.
    """
    end = template.end(tokenizer)
    if end is None:
        return tokenizer.eos_id
    token = tokenizer.token_to_id(end)
    if token is None:
        raise UserError(
            f'Template {template.name!r} ends answers with {end!r}, '
            "which is not a token of this tokenizer: set data.template to 'chat' or 'plain'."
        )
    return token


def encode_prompt(tokenizer: Tokenizer, template: Template, question: str) -> list[int]:
    """The tokens that generation starts from, the same as in training.

    Where the tokenizer's texts start with a bos token, the prompt does, be it that the template
    writes it or not.
    """
    return with_bos(tokenizer, tokenizer.encode(template.prompt(tokenizer, question)))


def with_bos(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The tokens of a text, after a bos token where texts start with one."""
    if tokenizer.bos_id is None or tokens[:1] == [tokenizer.bos_id]:
        return tokens
    return [tokenizer.bos_id, *tokens]


def encode_completion(tokenizer: Tokenizer, template: Template, example: Example) -> list[int]:
    """The tokens that should follow those of the prompt, without the one that ends them.

    They are encoded apart from the prompt, whose last token could otherwise grow into the
    completion: generation has only the prompt. But they go on, so that nothing marks the beginning
    of a text.
    """
    completion = template.completion(tokenizer, example.question, example.answer)
    return tokenizer.encode(completion, continues=True)


def encode_example(
    tokenizer: Tokenizer,
    template: Template,
    example: Example,
    task_id: int,
    max_length: int,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """One example as arrays of shape (T,), T ≤ `max_length`.

    Truncation leaves the answer at least half of the positions. It is cut at its end, and then no
    token ends it; the prompt is cut at its beginning, after a bos token.

    Args:
        tokenizer: makes the tokens.
        template: the text around question and answer.
        example: the question and its answer.
        task_id: the number of its task in the mixture.
        max_length: the most positions that the example may take.
        truncate: whether to cut one that is longer, or refuse it.

    Returns:
        `inputs`, `targets` (the next token of each) and `task_ids` in int32, and `loss_mask` in
        float32: 1 where the target belongs to the answer or ends it, else 0.

    Raises:
        UserError: the example is longer than `max_length`, and is not to be cut.
    """
    prompt = encode_prompt(tokenizer, template, example.question)
    answer = encode_completion(tokenizer, template, example)
    needed = len(prompt) + len(answer)
    answer.append(end_id(tokenizer, template))
    if needed > max_length:
        if not truncate:
            raise UserError(
                f'data.sequence_length is {max_length}; it must be at least {needed} for the '
                f'example {example.question[:40]!r}.'
            )
        prompt, answer = _cut(prompt, answer, max_length + 1, tokenizer.bos_id)
    tokens = np.array(prompt + answer, np.int32)
    positions = np.arange(len(tokens) - 1)
    return {
        'inputs': tokens[:-1],
        'targets': tokens[1:],
        'loss_mask': (positions >= len(prompt) - 1).astype(np.float32),
        'task_ids': np.full(positions.shape, task_id, np.int32),
    }


def answer_room(prompt_length: int, length: int) -> int:
    """How many tokens of an answer truncation leaves at most.

    Args:
        prompt_length: tokens of the prompt.
        length: of prompt and answer together, after truncation.
    """
    return max(length - prompt_length, length // 2)


def _cut(
    prompt: list[int], answer: list[int], length: int, bos_id: int | None
) -> tuple[list[int], list[int]]:
    """A prompt and an answer of `length` tokens together, fewer than they have."""
    answer = answer[: answer_room(len(prompt), length)]
    kept = length - len(answer)
    start = prompt[:1] if prompt[0] == bos_id else []
    return start + prompt[len(prompt) - kept + len(start) :], answer

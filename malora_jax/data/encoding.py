"""Tokenization of examples: input tokens, target tokens and the loss mask.

Inputs and targets are shifted by one token within each example, before packing. So no token of one
example is ever trained to predict the first token of the next one in its row.

T is the number of tokens of an example, without the token that ends its last answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.data.examples import Example
from malora_jax.data.templates import Template
from malora_jax.data.tokenizer import TokenizerProtocol
from malora_jax.errors import UserError


def end_token_id(tokenizer: TokenizerProtocol, template: Template) -> int:
    """Return the ID of the token that ends an answer.

    For example::

        tokens = encode_completion(tokenizer, template, example)
        tokens.append(end_token_id(tokenizer, template))

    Raises:
        UserError: The template's end token is not in the tokenizer's vocabulary.
    """
    end = template.get_end_token(tokenizer)
    if end is None:
        return tokenizer.eos_id
    token = tokenizer.token_to_id(end)
    if token is None:
        raise UserError(
            f'Template {template.name!r} ends answers with {end!r}, '
            "which is not a token of this tokenizer: set data.template to 'chat' or 'plain'."
        )
    return token


class Turn(NamedTuple):
    """One tokenized turn of an example.

    Attributes:
        prompt: Token IDs that are given to the model, without loss.
        answer: Token IDs of the answer, with loss, including the token that ends it.
    """

    prompt: list[int]
    answer: list[int]


def encode_prompt(
    tokenizer: TokenizerProtocol,
    template: Template,
    question: str,
    history: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Return the token IDs of the prompt for generation, identical to those in training.

    The prompt starts with exactly one BOS token if the tokenizer uses one, no matter whether the
    template writes it too.

    For example::

        tokens = encode_prompt(tokenizer, get_template('plain'), 'What is 2 + 2?')

    Args:
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        question: Question that the model should answer.
        history: Questions and answers of the turns before the question.

    Raises:
        UserError: The template does not suit the tokenizer, or does not support several turns.
    """
    if history:
        *before, last = history
        turns = encode_turns(tokenizer, template, Example(*last, {}, tuple(before)))
        return _joined(turns) + _next_prompt(tokenizer, template, history, question)
    return with_bos(tokenizer, tokenizer.encode(template.prompt(tokenizer, question)))


def with_bos(tokenizer: TokenizerProtocol, tokens: list[int]) -> list[int]:
    """Return the tokens of a text with a BOS token in front, if the tokenizer uses one.

    For example::

        tokens = with_bos(tokenizer, tokenizer.encode('Once upon a time'))
    """
    if tokenizer.bos_id is None or tokens[:1] == [tokenizer.bos_id]:
        return tokens
    return [tokenizer.bos_id, *tokens]


def encode_completion(
    tokenizer: TokenizerProtocol, template: Template, example: Example
) -> list[int]:
    """Return the token IDs that should follow the prompt, without the token that ends the answer.

    The completion is tokenized separately from the prompt. Otherwise the last token of the prompt
    could merge with the beginning of the completion, whereas in generation there is only the
    prompt. The completion continues a text, so the tokenizer adds no marker for the start of a
    text, such as the space of SentencePiece.

    For example::

        tokens = encode_completion(tokenizer, get_template('plain'), Example('2 + 2?', '4', {}))
    """
    completion = template.completion(tokenizer, example.question, example.answer)
    return tokenizer.encode(completion, continues=True)


def encode_turns(tokenizer: TokenizerProtocol, template: Template, example: Example) -> list[Turn]:
    """Tokenize all turns of an example; the first one gets a BOS token if the tokenizer uses one.

    Raises:
        UserError: The template does not suit the tokenizer, or does not support several turns.
    """
    end = end_token_id(tokenizer, template)
    texts = (*example.history, (example.question, example.answer))
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(texts):
        if number:
            prompt = _next_prompt(tokenizer, template, texts[:number], question)
        else:
            prompt = encode_prompt(tokenizer, template, question)
        completion = encode_completion(tokenizer, template, Example(question, answer, {}))
        turns.append(Turn(prompt, [*completion, end]))
    return turns


def count_positions(turns: Sequence[Turn]) -> int:
    """Return T, the number of positions that the turns take together."""
    return sum(len(part) for turn in turns for part in turn) - 1


def truncate_turns(turns: Sequence[Turn], max_length: int, bos_id: int | None) -> list[Turn]:
    """Truncate turns to at most `max_length` positions.

    Whole turns are dropped from the end, because later turns refer to earlier ones. The first turn
    always remains. If it is too long, its prompt and its answer are cut. The answer may take all
    positions that the prompt leaves free, and always at least half of the positions. A longer
    answer is cut at its end, and then no end token follows it. The prompt is cut at its beginning,
    to the positions that the answer leaves; a BOS token there is kept.

    Args:
        turns: Tokenized turns of an example, at least one.
        max_length: Maximum number of positions, T.
        bos_id: ID of the BOS token, or None.
    """
    remaining = list(turns)
    while len(remaining) > 1 and count_positions(remaining) > max_length:
        remaining.pop()
    if count_positions(remaining) > max_length:
        remaining = [Turn(*_truncate_turn(*remaining[0], max_length + 1, bos_id))]
    return remaining


def encode_example(
    tokenizer: TokenizerProtocol,
    template: Template,
    example: Example,
    task_id: int,
    max_length: int,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """Tokenize an example into arrays of shape (T,), where T ≤ `max_length`.

    For example::

        arrays = encode_example(
            tokenizer, get_template('plain'), Example('2 + 2?', '4', {}), task_id=0, max_length=256
        )

    Args:
        tokenizer: Tokenizer of the model.
        template: Prompt template.
        example: Question and answer, with earlier turns, if any.
        task_id: Index of the task in the mixture.
        max_length: Maximum number of positions of the example.
        truncate: Whether to truncate a longer example, as `truncate_turns` does, instead of raising
            an error.

    Returns:
        int32 arrays `inputs`, `targets` (the next token of each input) and `task_ids`, and the
        float32 array `loss_mask`: 1 where the target belongs to an answer or ends it, otherwise 0.

    Raises:
        UserError: The example is longer than `max_length` and `truncate` is False, or the template
            does not suit the tokenizer.
    """
    turns = encode_turns(tokenizer, template, example)
    needed = count_positions(turns)
    if needed > max_length:
        if not truncate:
            raise UserError(
                f'data.sequence_length is {max_length}; it must be at least {needed} for the '
                f'example {example.first_question[:40]!r}.'
            )
        turns = truncate_turns(turns, max_length, tokenizer.bos_id)
    tokens = np.array(_joined(turns), np.int32)
    loss_masks = [np.repeat(np.array([0, 1], np.float32), [*map(len, turn)]) for turn in turns]
    return {
        'inputs': tokens[:-1],
        'targets': tokens[1:],
        'loss_mask': np.concatenate(loss_masks)[1:],
        'task_ids': np.full(len(tokens) - 1, task_id, np.int32),
    }


def _next_prompt(
    tokenizer: TokenizerProtocol,
    template: Template,
    history: Sequence[tuple[str, str]],
    question: str,
) -> list[int]:
    """Return the token IDs of the prompt of a question that follows earlier turns.

    The prompt begins after the end token of the last answer in `history`. It contains the new
    question, and ends where the model's next answer begins.
    """
    messages = [
        {'role': role, 'content': text}
        for turn in history
        for role, text in zip(('user', 'assistant'), turn, strict=True)
    ]
    messages.append({'role': 'user', 'content': question})
    return tokenizer.encode(template.next_prompt(tokenizer, messages), continues=True)


def _joined(turns: Sequence[Turn]) -> list[int]:
    return [token for turn in turns for part in turn for token in part]


def _truncate_turn(
    prompt: list[int], answer: list[int], length: int, bos_id: int | None
) -> tuple[list[int], list[int]]:
    """Truncate a prompt and an answer so that together they have exactly `length` tokens.

    The arguments must have more than `length` tokens together. `truncate_turns` describes which
    part is cut.
    """
    answer = answer[: max(length - len(prompt), length // 2)]
    kept = length - len(answer)
    start = prompt[:1] if prompt[0] == bos_id else []
    return start + prompt[len(prompt) - kept + len(start) :], answer

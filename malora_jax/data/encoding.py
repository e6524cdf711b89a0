"""Examples as arrays of tokens, with a target for every input.

Inputs and targets are shifted against each other here, example by example, so that packing several
into a row never makes one predict the first token of the next.

T is the number of tokens of an example, without the one that ends its last answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from malora_jax.data.examples import Example
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


class Turn(NamedTuple):
    """A part of an example.

    Attributes:
        prompt: tokens that are given.
        answer: those that follow and are learnt, with the one that ends them.
    """

    prompt: list[int]
    answer: list[int]


def encode_prompt(
    tokenizer: Tokenizer,
    template: Template,
    question: str,
    earlier: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """The tokens that generation starts from, the same as in training.

    Where the tokenizer's texts start with a bos token, the prompt does, be it that the template
    writes it or not.

    Args:
        tokenizer: makes the tokens.
        template: the text around question and answer.
        question: that is to be answered.
        earlier: the questions and answers before.
    """
    if earlier:
        *before, last = earlier
        turns = encode_turns(tokenizer, template, Example(*last, {}, tuple(before)))
        return _joined(turns) + _next_prompt(tokenizer, template, earlier, question)
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


def encode_turns(tokenizer: Tokenizer, template: Template, example: Example) -> list[Turn]:
    """All turns of an example, the first one's prompt from the beginning of the text.

    Raises:
        UserError: the template does not suit the tokenizer, or several turns.
    """
    end = end_id(tokenizer, template)
    texts = (*example.earlier, (example.question, example.answer))
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(texts):
        if number:
            prompt = _next_prompt(tokenizer, template, texts[:number], question)
        else:
            prompt = encode_prompt(tokenizer, template, question)
        completion = encode_completion(tokenizer, template, Example(question, answer, {}))
        turns.append(Turn(prompt, [*completion, end]))
    return turns


def positions_of(turns: Sequence[Turn]) -> int:
    """T of the turns together."""
    return sum(len(part) for turn in turns for part in turn) - 1


def cut_turns(turns: Sequence[Turn], max_length: int, bos_id: int | None) -> list[Turn]:
    """As much of some turns as fits into `max_length` positions.

    Later turns are left out, as what they are about is said in earlier ones. Of a first turn that
    is too long by itself the answer keeps at least half of the positions: it is cut at its end, and
    then no token ends it; the prompt is cut at its beginning, after a bos token.
    """
    kept = list(turns)
    while len(kept) > 1 and positions_of(kept) > max_length:
        kept.pop()
    if positions_of(kept) > max_length:
        kept = [Turn(*_cut(*kept[0], max_length + 1, bos_id))]
    return kept


def encode_example(
    tokenizer: Tokenizer,
    template: Template,
    example: Example,
    task_id: int,
    max_length: int,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """One example as arrays of shape (T,), T ≤ `max_length`.

    Args:
        tokenizer: makes the tokens.
        template: the text around question and answer.
        example: the question and its answer, and the turns before, if any.
        task_id: the number of its task in the mixture.
        max_length: the most positions that the example may take.
        truncate: whether to cut one that is longer as `cut_turns` does, or refuse it.

    Returns:
        `inputs`, `targets` (the next token of each) and `task_ids` in int32, and `loss_mask` in
        float32: 1 where the target belongs to an answer or ends it, else 0.

    Raises:
        UserError: the example is longer than `max_length`, and is not to be cut.
    """
    turns = encode_turns(tokenizer, template, example)
    needed = positions_of(turns)
    if needed > max_length:
        if not truncate:
            raise UserError(
                f'data.sequence_length is {max_length}; it must be at least {needed} for the '
                f'example {example.opening[:40]!r}.'
            )
        turns = cut_turns(turns, max_length, tokenizer.bos_id)
    tokens = np.array(_joined(turns), np.int32)
    learnt = [np.repeat(np.array([0, 1], np.float32), [*map(len, turn)]) for turn in turns]
    return {
        'inputs': tokens[:-1],
        'targets': tokens[1:],
        'loss_mask': np.concatenate(learnt)[1:],
        'task_ids': np.full(len(tokens) - 1, task_id, np.int32),
    }


def _next_prompt(
    tokenizer: Tokenizer,
    template: Template,
    earlier: Sequence[tuple[str, str]],
    question: str,
) -> list[int]:
    """The tokens between the end of the last answer and where the model's next turn begins."""
    messages = [
        {'role': role, 'content': text}
        for turn in earlier
        for role, text in zip(('user', 'assistant'), turn, strict=True)
    ]
    messages.append({'role': 'user', 'content': question})
    return tokenizer.encode(template.next_prompt(tokenizer, messages), continues=True)


def _joined(turns: Sequence[Turn]) -> list[int]:
    return [token for turn in turns for part in turn for token in part]


def _cut(
    prompt: list[int], answer: list[int], length: int, bos_id: int | None
) -> tuple[list[int], list[int]]:
    """A prompt and an answer of `length` tokens together, fewer than they have."""
    answer = answer[: max(length - len(prompt), length // 2)]
    kept = length - len(answer)
    start = prompt[:1] if prompt[0] == bos_id else []
    return start + prompt[len(prompt) - kept + len(start) :], answer

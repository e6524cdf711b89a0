"""Scoring held-out questions: generate an answer to each, ask the task's own scorer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from malora_jax.data import (
    Example,
    Scored,
    Split,
    Template,
    Tokenizer,
    encode_completion,
    encode_prompt,
)
from malora_jax.models.generate import Generator


@dataclasses.dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        task: name of the task.
        question: what was asked.
        expected: the answer of the data.
        answer: what the model said.
        score: what the task's scorer gives it, in [0, 1].
    """

    task: str
    question: str
    expected: str
    answer: str
    score: float


def answer_held_out(
    generator: Generator,
    variables: Any,
    splits: Sequence[Split],
    tokenizer: Tokenizer,
    template: Template,
    description: str,
) -> list[Answer]:
    """Answers every held-out question, greedily.

    An answer may be as long as the longest one that the task's held-out examples need, plus a few
    tokens; what comes later cannot be an exact match.

    Args:
        generator: the model.
        variables: its collections.
        splits: the tasks.
        tokenizer: of the model.
        template: the prompt's form, the one trained with.
        description: what the progress bar says.
    """
    answers = []
    total = sum(len(split.held_out) for split in splits)
    with tqdm.tqdm(total=total, desc=description, unit='question', dynamic_ncols=True) as bar:
        for split in splits:
            answers += _answer_task(generator, variables, split, tokenizer, template)
            bar.update(len(split.held_out))
    return answers


def longest_answer(split: Split, tokenizer: Tokenizer, template: Template) -> int:
    """Tokens that the longest answer of a task's held-out examples takes."""
    return max(len(encode_completion(tokenizer, template, e)) for e in split.held_out)


def _answer_task(
    generator: Generator, variables: Any, split: Split, tokenizer: Tokenizer, template: Template
) -> list[Answer]:
    prompts = [encode_prompt(tokenizer, template, example.question) for example in split.held_out]
    limit = longest_answer(split, tokenizer, template) + 4
    generated = generator(variables, prompts, limit)
    return [
        _score(split.task, example, tokenizer.decode(ids, continues=True).strip())
        for example, ids in zip(split.held_out, generated, strict=True)
    ]


def _score(task: Scored, example: Example, text: str) -> Answer:
    score = float(task.score(text, example))
    return Answer(task.name, example.question, example.answer, text, score)


def share_exact(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of answers of each task that its scorer calls entirely right."""
    by_task: dict[str, list[bool]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer.score == 1.0)
    return {task: sum(right) / len(right) for task, right in by_task.items()}


def average(values: Mapping[str, float]) -> float:
    """The mean over tasks."""
    return sum(values.values()) / len(values)

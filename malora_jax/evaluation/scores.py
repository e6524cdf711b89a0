"""Scored answers to held-out questions: means by task, averages over tasks, and their intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import statistics


@dataclasses.dataclass(frozen=True)
class Answer:
    """A held-out question with the model's answer and its score.

    Attributes:
        task: Name of the task.
        question: Text of the question.
        expected: Right answer according to the data.
        answer: Text that the model generated, or the option that it chose.
        score: Score in [0, 1].
        nats: Loss on the expected answer, in nats, summed over its tokens and the end token, as in
            training.
        tokens: Number of tokens of the expected answer, including the end token.
        more: Additional scores of the same answer, by name.
    """

    task: str
    question: str
    expected: str
    answer: str
    score: float
    nats: float
    tokens: int
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)


def group_by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Group answers by the name of their task."""
    grouped: dict[str, list[Answer]] = {}
    for answer in answers:
        grouped.setdefault(answer.task, []).append(answer)
    return grouped


def mean_score(answers: Sequence[Answer]) -> float:
    """Return the mean score of the answers to one task; there must be at least one answer."""
    return sum(answer.score for answer in answers) / len(answers)


def mean_loss(answers: Sequence[Answer]) -> float:
    """Return the loss on one task's expected answers: sum of nats / sum of tokens."""
    return sum(answer.nats for answer in answers) / sum(answer.tokens for answer in answers)


def more_scores(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Return the means of the scores in `Answer.more`, over the answers to one task.

    Args:
        answers: Answers to one task, at least one.

    Returns:
        For each of these scores, by its name, a dict with the mean (`score`) and the confidence
        `interval` of the mean.
    """
    means = {}
    for name in answers[0].more:
        others = [dataclasses.replace(answer, score=answer.more[name]) for answer in answers]
        means[name] = {'score': mean_score(others), 'interval': interval(others)}
    return means


def interval(answers: Sequence[Answer]) -> list[float]:
    """Return the 95% confidence interval of one task's mean score, as [lower, upper]."""
    return list(statistics.score_interval([answer.score for answer in answers]))


def average_interval(answers: Mapping[str, Sequence[Answer]]) -> list[float]:
    """Return the 95% confidence interval of the average score, as [lower, upper].

    The average score is the mean score of each task, averaged over the tasks.

    Args:
        answers: Answers to each task, by task name.
    """
    scores = {task: [a.score for a in of_task] for task, of_task in answers.items()}
    return list(statistics.average_interval(scores))


def average(values: Mapping[str, float]) -> float:
    """Return the mean of one value per task, with the same weight for each task.

    Args:
        values: Value of each task, by task name.
    """
    return sum(values.values()) / len(values)

"""Readers of the files that a run writes into its directory: metrics, answers and results."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.evaluation.scores import Answer
from malora_jax.schema import AnyNumber, PositiveInt

METRICS_FILE, RESULTS_FILE = 'metrics.jsonl', 'results.json'
# Remedy in messages about a broken file of a run.
REMEDY = 'restore it from a copy, or start a new run in another --workdir'


class _StoredModel(TypedDict):
    name: str


class _StoredData(TypedDict):
    tasks: list[str]
    template: str


class StoredConfig(TypedDict):
    """Fields that `config.json` must have so that runs can be compared.

    The file may have other fields.
    """

    seed: int
    method: str
    model: _StoredModel
    data: _StoredData


class ScoredAnswer(TypedDict):
    """Fields that each row of an answers file must have so that runs can be compared.

    A row may have other fields.
    """

    task: str
    question: str
    score: float
    nats: float
    tokens: int
    expected: NotRequired[str]
    answer: NotRequired[str]


class TaskResult(TypedDict):
    """Results of one task in `results.json`, before and after training.

    These are the fields that this package reads. A task may have other fields.
    """

    after: float
    loss_after: float
    before: float
    loss_before: float
    examples: PositiveInt
    metric: str
    scoring: NotRequired[dict[str, Any]]
    after_interval: NotRequired[list[float]]
    best_constant: NotRequired[float]


class AverageScores(TypedDict):
    """Mean scores over the tasks, before and after training."""

    after: float
    before: float


class ParameterCounts(TypedDict):
    """Parameter counts that are read from `results.json`."""

    trainable: int
    base: NotRequired[PositiveInt]
    frozen_in_adapter: NotRequired[int]
    percent_of_base: NotRequired[float]
    by_group: NotRequired[dict[str, int]]


class StoredResults(TypedDict):
    """Fields of `results.json` that this package reads, for example to compare runs.

    The file may have other fields.
    """

    tasks: dict[str, TaskResult]
    average: AverageScores
    parameters: ParameterCounts
    steps: PositiveInt
    train_time_s: float
    model: NotRequired[str]
    tokens: NotRequired[int]
    routing: NotRequired[dict[str, float]]


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """Read the results of a finished run.

    Args:
        workdir: Directory of the run.

    Raises:
        UserError: The file is broken, or has no task.
        FileNotFoundError: The run is not finished.
    """
    path = workdir / RESULTS_FILE
    results = files.read_json(path, StoredResults, REMEDY)
    if not results['tasks']:
        raise UserError(f'{path}: tasks is empty: {REMEDY}.')
    return results


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl` file, which has one record for each step, starting with step 1.

    Raises:
        UserError: A line is not a record, or a step is missing or occurs twice.
        FileNotFoundError: The file does not exist.
    """
    records = files.read_json_lines(path, dict[str, AnyNumber], REMEDY)
    for number, record in enumerate(records, start=1):
        if record.get('step') != number:
            actual = f'step {record["step"]:g}' if 'step' in record else 'no step'
            raise UserError(f'{path}:{number} has {actual}; it must have step {number}: {REMEDY}.')
    return records


def read_answers(path: pathlib.Path, questions: Mapping[str, int]) -> list[Answer]:
    """Read a file of answers to held-out questions.

    Args:
        path: Path of the file.
        questions: Number of held-out questions of each task.

    Raises:
        UserError: A line is not an answer, or a task has more or fewer answers than questions.
        FileNotFoundError: The file does not exist.
    """
    answers = [Answer(**row) for row in files.read_json_lines(path, Answer, REMEDY)]
    check_answer_counts(path, Counter(answer.task for answer in answers), questions)
    return answers


def check_answer_counts(
    path: pathlib.Path, counts: Mapping[str, int], questions: Mapping[str, int]
) -> None:
    """Check that each task has one answer per held-out question.

    Args:
        path: Path of the answers file, for error messages.
        counts: Number of answers of each task.
        questions: Number of held-out questions of each task.

    Raises:
        UserError: A task has more or fewer answers than questions.
    """
    for task in sorted({*counts, *questions}):
        if counts.get(task, 0) != questions.get(task, 0):
            raise UserError(
                f'{path} has {counts.get(task, 0):,} answers of task {task!r}, which has '
                f'{questions.get(task, 0):,} held-out questions: {REMEDY}.'
            )


def read_answer_rows(path: pathlib.Path, results: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Read an answers file as plain rows, and check their number against `results.json`.

    Rows need only the fields of `ScoredAnswer`, because published runs may lack the texts of the
    expected and the generated answers.

    Args:
        path: Path of the answers file.
        results: Content of `results.json`.

    Raises:
        UserError: A line is not an answer, or a task has more or fewer answers than questions.
        FileNotFoundError: The file does not exist.
    """
    rows = files.read_json_lines(path, ScoredAnswer, REMEDY)
    examples = {task: each['examples'] for task, each in results['tasks'].items()}
    check_answer_counts(path, Counter(row['task'] for row in rows), examples)
    return rows

"""Answers to held-out questions, each task as its scoring rule asks for them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from malora_jax import statistics
from malora_jax.data import (
    Example,
    GeneratedScoring,
    LikelihoodScoring,
    ProgramScoring,
    Scoring,
    Split,
    Template,
    Tokenizer,
    encode_completion,
    encode_prompt,
    end_id,
)
from malora_jax.evaluation import choices, code, sandbox
from malora_jax.evaluation.likelihood import Likelihood, Request, log_likelihoods
from malora_jax.models.generate import Generator

# Positions of a row of texts, which holds about so many; of more positions, attention takes longer,
# and fewer leave more padding.
_TEXT_BUCKET, _TEXTS = 128, 2


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question and what the model made of it.

    Attributes:
        task: name of the task.
        question: what was asked.
        expected: the answer of the data.
        answer: what the model said, or the option that it took.
        score: in [0, 1].
        nats: the loss on the expected answer, as in training: minus the log-probability of its
            tokens and of the one that ends it.
        tokens: how many these are.
        more: other scores of the same answer, by name.
    """

    task: str
    question: str
    expected: str
    answer: str
    score: float
    nats: float
    tokens: int
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Examinee:
    """A model with what it takes to ask it.

    Attributes:
        generator: of the model's continuations.
        variables: the model's collections.
        tokenizer: of the model.
        template: around the questions, the one trained with.
        samples: programs for each question of a task that runs them.
        temperature: of these samples; 0 = the most probable tokens.
        seed: of these samples.
    """

    generator: Generator
    variables: Any
    tokenizer: Tokenizer
    template: Template
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


def answer_held_out(examinee: Examinee, splits: Sequence[Split], description: str) -> list[Answer]:
    """Answers every held-out question.

    Args:
        examinee: who is asked.
        splits: the tasks; those without held-out questions are left out.
        description: what the progress bars say.
    """
    return [
        answer
        for split in splits
        if split.held_out
        for answer in _answer_task(
            split.task.scoring, examinee, split, f'{description} {split.task_name}'
        )
    ]


def answer_limit(split: Split, tokenizer: Tokenizer, template: Template) -> int:
    """Return the maximum number of tokens of a generated answer to a held-out question."""
    return split.task.scoring.token_limit(answer_lengths(split, tokenizer, template))


def answer_lengths(split: Split, tokenizer: Tokenizer, template: Template) -> Iterator[int]:
    """Yield the number of tokens of the right answer to each held-out question."""
    return (len(encode_completion(tokenizer, template, example)) for example in split.held_out)


@functools.singledispatch
def environment(scoring: Scoring) -> dict[str, Any]:
    """Return what results record about the machine that scores; most rules depend on none."""
    return {}


@environment.register
def _(scoring: ProgramScoring) -> dict[str, Any]:
    return {'sandbox': dataclasses.asdict(sandbox.protections())}


def by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers of each task."""
    grouped: dict[str, list[Answer]] = {}
    for answer in answers:
        grouped.setdefault(answer.task, []).append(answer)
    return grouped


def mean_score(answers: Sequence[Answer]) -> float:
    """The mean score of one task's answers, at least one."""
    return sum(answer.score for answer in answers) / len(answers)


def mean_loss(answers: Sequence[Answer]) -> float:
    """Nats per token of one task's expected answers: all nats by all tokens."""
    return sum(answer.nats for answer in answers) / sum(answer.tokens for answer in answers)


def more_scores(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """The other scores of one task's answers: by name, their mean `score` and its `interval`."""
    found = {}
    for name in answers[0].more:
        others = [dataclasses.replace(answer, score=answer.more[name]) for answer in answers]
        found[name] = {'score': mean_score(others), 'interval': interval(others)}
    return found


def interval(answers: Sequence[Answer]) -> list[float]:
    """95% interval of one task's mean score, for other questions of its kind."""
    return list(statistics.score_interval([answer.score for answer in answers]))


def average_interval(answers: Mapping[str, Sequence[Answer]]) -> list[float]:
    """95% interval of the mean over tasks of their mean scores."""
    scores = {task: [a.score for a in of_task] for task, of_task in answers.items()}
    return list(statistics.average_interval(scores))


def average(values: Mapping[str, float]) -> float:
    """The mean over tasks."""
    return sum(values.values()) / len(values)


@functools.singledispatch
def _answer_task(
    scoring: Scoring, examinee: Examinee, split: Split, description: str
) -> list[Answer]:
    """Answer the held-out questions of a task; a function is registered for each class of rules."""
    raise NotImplementedError(f'{type(scoring).__name__} has no function that asks a model.')


@_answer_task.register
def _write_answers(
    scoring: GeneratedScoring, examinee: Examinee, split: Split, description: str
) -> list[Answer]:
    texts = [text.strip() for (text,) in _generate(examinee, split, description, scoring.stop)]
    return [
        _answer(split, example, text, scoring.score(text, example), right)
        for example, text, right in zip(
            split.held_out, texts, _right_answers(examinee, split, description), strict=True
        )
    ]


@_answer_task.register
def _take_options(
    scoring: LikelihoodScoring, examinee: Examinee, split: Split, description: str
) -> list[Answer]:
    # The right answer costs next to nothing: its text is that of an option and one token more.
    tokenizer, template = examinee.tokenizer, examinee.template
    requests = []
    for example in split.held_out:
        options = choices.option_requests(tokenizer, template, example)
        prompt, right = options[example.metadata['label']]
        requests.append([*options, (prompt, [*right, end_id(tokenizer, template)])])
    found = iter(_log_likelihoods(examinee, itertools.chain.from_iterable(requests), description))
    answers = []
    for example, of_question in zip(split.held_out, requests, strict=True):
        options = example.metadata['options']
        *likelihoods, right = [next(found) for _ in of_question]
        choice = choices.choose([each.log_probability for each in likelihoods], options)
        scores = choices.choice_scores(choice, example.metadata)
        score = scores.pop('accuracy')
        answers.append(_answer(split, example, options[choice.raw], score, right, more=scores))
    return answers


@_answer_task.register
def _write_programs(
    scoring: ProgramScoring, examinee: Examinee, split: Split, description: str
) -> list[Answer]:
    """Score pass@1; with k samples, pass@k is another score."""
    # What ends a completed function may well stand in a chat's answer before it.
    in_chat = examinee.template.end(examinee.tokenizer) is not None
    texts = _generate(
        examinee,
        split,
        description,
        () if in_chat else scoring.stop,
        samples=examinee.samples,
        temperature=examinee.temperature,
        seed=examinee.seed,
    )
    completion = code.chat_completion if in_chat else code.cut_completion
    problems = [
        code.Problem(e.question, e.metadata['test'], e.metadata['entry_point'])
        for e in split.held_out
    ]
    programs = [
        [completion(problem, text) for text in written]
        for problem, written in zip(problems, texts, strict=True)
    ]
    outcomes = code.score_completions(problems, programs)
    answers = []
    for example, written, of_problem, loss in zip(
        split.held_out,
        texts,
        outcomes,
        _right_answers(examinee, split, description),
        strict=True,
    ):
        right, samples = sum(outcome.passed for outcome in of_problem), len(of_problem)
        more = {f'pass@{samples}': code.pass_at_k(samples, right, samples)} if samples > 1 else {}
        pass_at_1 = code.pass_at_k(samples, right, 1)
        answers.append(_answer(split, example, written[0], pass_at_1, loss, more=more))
    return answers


def _generate(
    examinee: Examinee, split: Split, description: str, stop: Sequence[str], **drawn: Any
) -> list[list[str]]:
    """The texts that the model says to each held-out question, drawn as `Generator.texts` does."""
    tokenizer, template = examinee.tokenizer, examinee.template
    prompts = [encode_prompt(tokenizer, template, e.question, e.earlier) for e in split.held_out]
    return examinee.generator.texts(
        examinee.variables,
        prompts,
        tokenizer,
        limit=answer_limit(split, tokenizer, template),
        stop=stop,
        description=description,
        **drawn,
    )


def _right_answers(examinee: Examinee, split: Split, description: str) -> list[Likelihood]:
    """How likely the model finds the expected answer to each held-out question."""
    tokenizer, template = examinee.tokenizer, examinee.template
    requests = [
        (
            encode_prompt(tokenizer, template, example.question, example.earlier),
            [*encode_completion(tokenizer, template, example), end_id(tokenizer, template)],
        )
        for example in split.held_out
    ]
    return _log_likelihoods(examinee, requests, f'{description}: loss')


def _log_likelihoods(
    examinee: Examinee, requests: Iterable[Request], description: str
) -> list[Likelihood]:
    generator = examinee.generator
    return log_likelihoods(
        generator.model,
        examinee.variables,
        list(requests),
        batch_size=-(-generator.batch_size // _TEXTS),
        bucket=_TEXT_BUCKET,
        description=description,
    )


def _answer(
    split: Split,
    example: Example,
    text: str,
    score: float,
    right: Likelihood,
    more: Mapping[str, float] | None = None,
) -> Answer:
    return Answer(
        split.task_name,
        example.question,
        example.answer,
        text,
        float(score),
        -right.log_probability,
        right.tokens,
        more or {},
    )

"""Evaluation of a model on held-out questions, by the scoring rule of each task."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from malora_jax.data import (
    Example,
    GenerationScoring,
    LikelihoodScoring,
    ProgramScoring,
    Scoring,
    TaskSplit,
    Template,
    TokenizerProtocol,
    encode_completion,
    encode_prompt,
    end_token_id,
)
from malora_jax.distributed import hosts
from malora_jax.evaluation import choices, code_execution, sandbox
from malora_jax.evaluation.likelihood import Likelihood, LikelihoodRequest, log_likelihoods
from malora_jax.evaluation.scores import Answer
from malora_jax.models.detokenization import StopCondition
from malora_jax.models.generate import Generator

# Divisor of the row length of packed texts, and the approximate number of texts in such a row.
# Longer rows make attention slower, and shorter ones have more padding.
_PAD_MULTIPLE, _TEXTS_PER_ROW = 128, 2
# Function that shows the progress. Its argument is the amount of work that was done since its last
# call, as a number of questions, which need not be whole.
_Advance = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """A model to evaluate, with its tokenizer, prompt template and sampling settings.

    Attributes:
        generator: Batched text generator of the model.
        variables: Variable collections of the model.
        tokenizer: Tokenizer of the model.
        template: Prompt template that the model was trained with.
        samples: Number of programs per question, for tasks that run programs.
        temperature: Sampling temperature of the programs; 0 = greedy decoding.
        seed: Random seed of the programs.
    """

    generator: Generator
    variables: Any
    tokenizer: TokenizerProtocol
    template: Template
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0


def answer_held_out(
    eval_model: EvalModel, splits: Sequence[TaskSplit], description: str
) -> list[Answer]:
    """Let the model answer every held-out question, and score the answers.

    Args:
        eval_model: Model to evaluate.
        splits: Split of each task; splits without held-out questions are skipped.
        description: Label of the progress bar.

    Raises:
        UserError: A question and its answer do not fit into the model's context, or generated code
            would run as root without the seccomp filter.
        OSError: The sandbox for generated code does not work on this system.
    """
    scored = [split for split in splits if split.held_out]
    questions = sum(len(split.held_out) for split in scored)
    answers: list[Answer] = []
    with hosts.progress_bar(description, questions, 'question') as bar:
        for split in scored:
            advance = functools.partial(bar.advance, facts=[split.task_name])
            if answers:  # Before the first task, the bar shows that JAX compiles.
                advance(0)
            answers += _answer_task(split.task.scoring, eval_model, split, advance)
        bar.update(questions)
    return answers


def max_answer_tokens(split: TaskSplit, tokenizer: TokenizerProtocol, template: Template) -> int:
    """Return the maximum number of tokens to generate for an answer.

    The limit is the same for all held-out questions of the task.

    Args:
        split: Split of the task.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
    """
    return split.task.scoring.token_limit(answer_lengths(split, tokenizer, template))


def answer_lengths(
    split: TaskSplit, tokenizer: TokenizerProtocol, template: Template
) -> Iterator[int]:
    """Yield the number of tokens of the right answer to each held-out question.

    Args:
        split: Split of the task.
        tokenizer: Tokenizer of the model.
        template: Prompt template.
    """
    return (len(encode_completion(tokenizer, template, example)) for example in split.held_out)


@functools.singledispatch
def scoring_environment(scoring: Scoring) -> dict[str, Any]:
    """Return properties of this machine that affect a task's scores, for `results.json`.

    For tasks that run generated code, the field `sandbox` lists the restrictions that this system
    supports. For all other tasks the result is empty.
    """
    return {}


@scoring_environment.register
def _(scoring: ProgramScoring) -> dict[str, Any]:
    return {'sandbox': dataclasses.asdict(sandbox.probe_protections())}


@functools.singledispatch
def _answer_task(
    scoring: Scoring, eval_model: EvalModel, split: TaskSplit, advance: _Advance
) -> list[Answer]:
    """Answer the held-out questions of a task; dispatches on the class of the scoring rule."""
    raise NotImplementedError(f'{type(scoring).__name__} has no implementation of `_answer_task`.')


@_answer_task.register
def _answer_by_generation(
    scoring: GenerationScoring, eval_model: EvalModel, split: TaskSplit, advance: _Advance
) -> list[Answer]:
    half = _fraction(advance, 2)  # The losses, and then the answers.
    likelihoods = _answer_likelihoods(eval_model, split, half)
    texts = _greedy_texts(eval_model, split, likelihoods, half, scoring.stop)
    return [
        _answer(
            split,
            example,
            text.strip(),
            scoring.score(text.strip(), example),
            likelihood,
            more={name: score(text.strip(), example) for name, score in scoring.more},
        )
        for example, text, likelihood in zip(split.held_out, texts, likelihoods, strict=True)
    ]


@_answer_task.register
def _answer_by_likelihood(
    scoring: LikelihoodScoring, eval_model: EvalModel, split: TaskSplit, advance: _Advance
) -> list[Answer]:
    # The loss on the right answer costs almost nothing: its tokens are those of an option and the
    # end token, and shared prefixes are computed once.
    tokenizer, template = eval_model.tokenizer, eval_model.template
    requests = []
    for example in split.held_out:
        options = choices.option_requests(tokenizer, template, example)
        prompt, right = options[example.metadata['label']]
        requests.append([*options, (prompt, [*right, end_token_id(tokenizer, template)])])
    per_question = sum(map(len, requests)) / len(requests)
    all_likelihoods = iter(
        _log_likelihoods(
            eval_model,
            itertools.chain.from_iterable(requests),
            _fraction(advance, per_question),
        )
    )
    answers = []
    for example, question_requests in zip(split.held_out, requests, strict=True):
        options = example.metadata['options']
        *likelihoods, right = [next(all_likelihoods) for _ in question_requests]
        choice = choices.choose([each.log_probability for each in likelihoods], options)
        scores = choices.choice_scores(choice, example.metadata)
        score = scores.pop('accuracy')
        answers.append(_answer(split, example, options[choice.raw], score, right, more=scores))
    return answers


@_answer_task.register
def _answer_by_program(
    scoring: ProgramScoring, eval_model: EvalModel, split: TaskSplit, advance: _Advance
) -> list[Answer]:
    """Answer with generated programs; score pass@1 and, with k > 1 samples, also pass@k."""
    # A chat answer may contain the stop strings before the function, so do not stop at them.
    in_chat = eval_model.template.get_end_token(eval_model.tokenizer) is not None
    third = _fraction(advance, 3)  # The programs, then their tests, and then the losses.
    texts = _generate(
        eval_model,
        split,
        split.held_out,
        _fraction(third, eval_model.samples),
        () if in_chat else scoring.stop,
        samples=eval_model.samples,
        temperature=eval_model.temperature,
        seed=eval_model.seed,
    )
    completion = (
        code_execution.completion_from_chat if in_chat else code_execution.completion_from_text
    )
    problems = [
        code_execution.Problem(e.question, e.metadata['test'], e.metadata['entry_point'])
        for e in split.held_out
    ]
    programs = [
        [completion(problem, text) for text in written]
        for problem, written in zip(problems, texts, strict=True)
    ]
    outcomes = code_execution.score_completions(
        problems, programs, advance=_fraction(third, eval_model.samples)
    )
    answers = []
    for example, samples_of_problem, problem_outcomes, loss in zip(
        split.held_out,
        texts,
        outcomes,
        _answer_likelihoods(eval_model, split, third),
        strict=True,
    ):
        right, samples = sum(outcome.passed for outcome in problem_outcomes), len(problem_outcomes)
        more = (
            {f'pass@{samples}': code_execution.pass_at_k(samples, right, samples)}
            if samples > 1
            else {}
        )
        pass_at_1 = code_execution.pass_at_k(samples, right, 1)
        answers.append(_answer(split, example, samples_of_problem[0], pass_at_1, loss, more=more))
    return answers


def _fraction(advance: _Advance, parts: float) -> _Advance:
    """Return a function that shows the progress of work of which `parts` make up a question."""
    return lambda count: advance(count / parts)


def _greedy_texts(
    eval_model: EvalModel,
    split: TaskSplit,
    likelihoods: Sequence[Likelihood],
    advance: _Advance,
    stop: Sequence[str],
) -> list[str]:
    """Return the text that greedy decoding produces for each held-out question.

    The likelihoods of the expected answers show where greedy decoding produces the expected answer.
    Only the other texts are generated.
    """
    tokenizer, template = eval_model.tokenizer, eval_model.template
    limit = max_answer_tokens(split, tokenizer, template)
    is_expected = [each.is_greedy and each.num_tokens <= limit for each in likelihoods]
    others = [e for e, expected in zip(split.held_out, is_expected, strict=True) if not expected]
    advance(len(is_expected) - len(others))
    generated = iter(_generate(eval_model, split, others, advance, stop) if others else [])
    text = StopCondition(tokenizer, tuple(stop)).text
    return [
        text(encode_completion(tokenizer, template, e)) if expected else next(generated)[0]
        for e, expected in zip(split.held_out, is_expected, strict=True)
    ]


def _generate(
    eval_model: EvalModel,
    split: TaskSplit,
    examples: Sequence[Example],
    advance: _Advance,
    stop: Sequence[str],
    **sampling: Any,
) -> list[list[str]]:
    """Return the generated texts, one list for each of some held-out questions.

    Args:
        eval_model: Model to evaluate.
        split: Split of the task.
        examples: The questions.
        advance: Function that shows the progress.
        stop: Strings that end a text.
        **sampling: Sampling arguments of `Generator.generate_texts`.
    """
    tokenizer, template = eval_model.tokenizer, eval_model.template
    prompts = [encode_prompt(tokenizer, template, e.question, e.history) for e in examples]
    return eval_model.generator.generate_texts(
        eval_model.variables,
        prompts,
        tokenizer,
        max_new_tokens=max_answer_tokens(split, tokenizer, template),
        stop=stop,
        advance=advance,
        **sampling,
    )


def _answer_likelihoods(
    eval_model: EvalModel, split: TaskSplit, advance: _Advance
) -> list[Likelihood]:
    """Return the likelihood of the expected answer to each held-out question."""
    tokenizer, template = eval_model.tokenizer, eval_model.template
    requests = [
        (
            encode_prompt(tokenizer, template, example.question, example.history),
            [*encode_completion(tokenizer, template, example), end_token_id(tokenizer, template)],
        )
        for example in split.held_out
    ]
    return _log_likelihoods(eval_model, requests, advance)


def _log_likelihoods(
    eval_model: EvalModel, requests: Iterable[LikelihoodRequest], advance: _Advance
) -> list[Likelihood]:
    generator = eval_model.generator
    return log_likelihoods(
        generator.model,
        eval_model.variables,
        list(requests),
        batch_size=-(-generator.batch_size // _TEXTS_PER_ROW),
        pad_multiple=_PAD_MULTIPLE,
        advance=advance,
    )


def _answer(
    split: TaskSplit,
    example: Example,
    text: str,
    score: float,
    likelihood: Likelihood,
    more: Mapping[str, float] | None = None,
) -> Answer:
    return Answer(
        split.task_name,
        example.question,
        example.answer,
        text,
        float(score),
        -likelihood.log_probability,
        likelihood.num_tokens,
        more or {},
    )

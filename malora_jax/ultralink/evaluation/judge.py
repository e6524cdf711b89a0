"""Stage `judge`: compare two models' answers pairwise with an LLM as a judge, as in OMGEval.

Judges have a position bias towards the first answer, so each pair is judged in both orders. An
answer wins if both verdicts prefer it, or if one verdict prefers it and the other is a tie. Two
opposite verdicts are a tie. A tie counts as half a win. OMGEval has 804 questions per language,
text-davinci-003 as the baseline and GPT-4 as the judge; here the user supplies both. The protocol
of OMGEval itself, with a single order, is in `omgeval`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError, short_repr
from malora_jax.ultralink import shards
from malora_jax.ultralink.evaluation import answer_pairs, judge_protocol, omgeval, question_files
from malora_jax.ultralink.evaluation.answer_pairs import AnswerPair
from malora_jax.ultralink.evaluation.file_language import check_file_language
from malora_jax.ultralink.evaluation.judge_protocol import JudgeProtocol
from malora_jax.ultralink.evaluation.win_rates import standard_error, win_rate
from malora_jax.ultralink.llm.chat import ChatSampling, ModelRequest, chat_text
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import Settings, language_setting, setting
from malora_jax.ultralink.shards import text_field
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
    format_counts,
)

STAGE = 'judge'
BOTH_ORDERS, OMGEVAL = 'both_orders', 'omgeval'
# Defaults of the settings that depend on the protocol; for omgeval, see `omgeval`.
_DEFAULTS = {
    BOTH_ORDERS: {'attempts': 3, 'max_tokens': 512, 'temperature': 0.3},
    OMGEVAL: {'attempts': 1, 'max_tokens': 100, 'temperature': 0.0},
}
# Fraction of the questions above which missing verdicts make a win rate doubtful.
_MAX_MISSING = 0.1
# Assumed length of a verdict of one or two sentences, for estimates.
_VERDICT_TOKENS = 60


@dataclasses.dataclass(frozen=True)
class JudgeConfig(Settings):
    """Settings of the comparison: language, baseline answers, model requests, and protocol.

    A setting that is None gets the default of the protocol.
    """

    section = STAGE
    language: str = language_setting('Language code of the questions.')
    baseline: pathlib.Path = setting(
        "File or directory with the baseline's answer to each question of --input: rows with `id` "
        "or `question`, and `answer`; or a file in OMGEval's format.",
        recorded=False,
    )
    attempts: int = setting(
        'Maximum number of attempts to get a verdict from the model; default: 3, or 1 with '
        '--protocol=omgeval.',
        None,
        at_least=1,
    )
    max_tokens: int = setting(
        'Maximum number of tokens that the model generates for a verdict; default: 512, or 100 '
        'with --protocol=omgeval.',
        None,
        at_least=1,
    )
    temperature: float = setting(
        'Sampling temperature; 0 = greedy decoding; default: 0.3, or 0 with --protocol=omgeval.',
        None,
        at_least=0,
    )
    protocol: str = setting(
        "both_orders = this project's prompt, each pair in both orders; omgeval = --template, each "
        'pair in one random order, and the win rate of AlpacaEval',
        BOTH_ORDERS,
        choices=(BOTH_ORDERS, OMGEVAL),
    )
    template: pathlib.Path | None = setting(
        "Template of the judge's prompt for --protocol=omgeval: a file of OMGEval's "
        'evaluator_prompts/gpt4_template.',
        None,
        recorded=False,
    )

    def __post_init__(self):
        for name, value in _DEFAULTS.get(self.protocol, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.template and self.protocol != OMGEVAL:
            raise UserError('--template is only used with --protocol=omgeval.')


class _Verdict(NamedTuple):
    """Result of judging a pair in one order.

    Attributes:
        answer_first: Whether the judged answer is the first one.
        points: 1 if the judged answer is better, -1 if the baseline's is better, 0 for a tie; None
            if no attempt gives a verdict.
        reply: The judge's last reply.
        refusals: Replies without a verdict.
    """

    answer_first: bool
    points: int | None
    reply: str
    refusals: dict[ModelRequest, str]

    @property
    def winner(self) -> str:
        """Name of the better answer: 'answer' or 'baseline'; 'tie' for none."""
        return {1: 'answer', -1: 'baseline'}.get(self.points or 0, 'tie')


def prepare(run: StageRun[JudgeConfig]) -> PreparedStage:
    """Return the function that judges one answer.

    The function returns a row {"id", "verdicts", "score"}. `verdicts` has one verdict for each
    order of the two answers: first the verdict with the judged answer in first place, then the
    verdict with the baseline's answer in first place. A verdict is 'answer', 'baseline' or 'tie'.
    `score` is 1 for a win, 0.5 for a tie, 0 for a loss.

    With the protocol omgeval, there is one verdict. The row has the field `first`: which answer was
    in first place, 'answer' or 'baseline'; '' for equal answers, which are a tie without a request.

    Raises:
        UserError: A row lacks a field, two rows have the same id, the baseline has no answer to a
            question, the questions or the template are in another language, or the template cannot
            be used.
    """
    config = run.config
    if config.protocol == OMGEVAL:
        protocol = omgeval.protocol(config.template, config.language, run.seed)
    else:
        protocol = judge_protocol.both_orders(config.language)
    for path in run.inputs:
        questions = (text_field(row, 'question') for row in question_files.read([path]))
        check_file_language(questions, config.language, f'{path}: the questions')
    read_pair = answer_pairs.open_baseline(run, config.baseline)

    def expected_requests(
        row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        pair = read_pair(row)
        for answer_first in protocol.orders(pair):
            messages = protocol.messages(pair.question, *pair.ordered(answer_first))
            tokens = count_tokens(chat_text(messages))
            yield ExpectedRequest(tokens, min(_VERDICT_TOKENS, config.max_tokens))

    async def process(row: Row) -> ItemOutcome:
        pair = read_pair(row)
        verdicts = [
            await _judge(run, protocol, pair, answer_first)
            for answer_first in protocol.orders(pair)
        ]
        failed = next((each for each in verdicts if each.points is None), None)
        refusals = {
            request: reason
            for each in verdicts
            if each is not failed
            for request, reason in each.refusals.items()
        }
        if failed:
            return ItemOutcome(
                reason='no verdict',
                detail=f'{"judged" if failed.answer_first else "baseline"} answer in first place',
                text=failed.reply,
                attempts=config.attempts,
                refusals=refusals | failed.refusals,
            )
        points = [each.points or 0 for each in verdicts]
        fields: dict[str, Any] = {
            'id': pair.id,
            'verdicts': [each.winner for each in verdicts] or ['tie'],
            'score': float(0.5 + 0.5 * np.sign(sum(points))),
        }
        if config.protocol == OMGEVAL:
            first = ['answer' if each.answer_first else 'baseline' for each in verdicts]
            fields['first'] = ''.join(first)
            counts = {'equal answers, not judged': int(not verdicts)}
        else:
            counts = {'verdict depends on the order': int(points[0] == -points[1] != 0)}
        return ItemOutcome([fields], '', counts, refusals=refusals)

    fingerprints = {'baseline': shards.digest([config.baseline]), 'prompt': protocol.prompt}
    assumption = f'{_VERDICT_TOKENS} tokens per verdict'
    expectation = Expectation(expected_requests, assumption)
    return PreparedStage(process, fingerprints, expectation=expectation)


async def _judge(
    run: StageRun[JudgeConfig], protocol: JudgeProtocol, pair: AnswerPair, answer_first: bool
) -> _Verdict:
    """Ask the judge to compare two answers in one order, until an attempt gives a verdict."""
    config = run.config
    sampling = ChatSampling(config.max_tokens, config.temperature, seed=run.seed)
    messages = protocol.messages(pair.question, *pair.ordered(answer_first))
    refusals: dict[ModelRequest, str] = {}
    for sample in range(config.attempts):
        request = ModelRequest(STAGE, messages, sampling, sample)
        reply = await run.model.complete(request)
        points = protocol.parse(reply)
        if points is not None:
            points = points if answer_first else -points
            break
        refusals[request] = f'no verdict (finish reason {reply.finish_reason})'
    return _Verdict(answer_first, points, reply.text, refusals)


def summary(run: StageRun[JudgeConfig], manifest: StageManifest) -> str:
    """Return the counts of the stage, and the win rate, as text.

    Raises:
        UserError: No question has a verdict.
    """
    scores = [row.fields['score'] for row in shards.read([run.output])]
    if not scores:
        raise _no_verdicts(run, manifest)
    result = win_rate(scores, seed=run.seed)
    if run.config.protocol == OMGEVAL:
        error = f'{standard_error(scores):.2%}' if len(scores) > 1 else 'unknown for one verdict'
        rate = f'{result.rate:.2%}, standard error {error}'
    else:
        rate = f'{result.rate:.1%}, 95% interval {result.low:.1%} to {result.high:.1%}'
    text = (
        f'{format_counts(manifest, run.output)}\n'
        f'Win rate {rate}: {result.wins} wins, {result.ties} ties, {result.losses} losses'
    )
    items, missing = manifest.total.items, manifest.total.items - len(scores)
    if missing > _MAX_MISSING * items:
        text += f'; without {missing:,} of {items:,} questions, which have no verdict'
    return text


def _no_verdicts(run: StageRun[JudgeConfig], manifest: StageManifest) -> UserError:
    """Return the error for answers without any verdict, with an example of a judge's reply."""
    message = 'No question has a verdict, so there is no win rate'
    for row in shards.read_rejects(run.output, manifest):
        reply = short_repr(row.fields['text'])
        return UserError(f'{message}: the first reply of the judge is {reply} ({row.location}).')
    return UserError(f'{message}.')

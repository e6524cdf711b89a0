"""Stage `dialogues`: a model generates questions and answers about segments of documents."""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, prompts, stage
from malora_jax.ultralink.languages import get_language
from malora_jax.ultralink.llm.chat import ChatSampling, ModelRequest, Reply, chat_text
from malora_jax.ultralink.paper_statistics import ANSWER_TOKENS, QUESTION_TOKENS
from malora_jax.ultralink.prompt_sets import prompts_setting
from malora_jax.ultralink.settings import (
    Settings,
    attempts_setting,
    setting,
    temperature_setting,
    top_p_setting,
)
from malora_jax.ultralink.shards import text_field
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
)
from malora_jax.ultralink.turn_checks import SHORT, answer_fault, describe_fault, question_fault

STAGE = 'dialogues'


@dataclasses.dataclass(frozen=True)
class DialoguesConfig(Settings):
    """Settings of dialogues: when they end, which turns are valid, and model requests.

    The defaults of the first five fields are the paper's; the other defaults are our own. The
    default stop probabilities give dialogues of 2 to 6 turns, 4.14 on average. A dialogue ends
    earlier if its context is full, or if the model gives no valid question or answer.
    """

    section = STAGE
    stop_probability: float = setting(
        'Probability that a dialogue ends right after its second turn; for later turns, the '
        'probability grows by the factor stop_growth.',
        0.1,
        at_least=0,
        at_most=1,
    )
    stop_growth: float = setting(
        'Growth factor: the probability that a dialogue ends right after its third turn is '
        'stop_probability times this factor; each later turn multiplies it by the factor again '
        '(the result is capped at 1).',
        2.0,
        at_least=1,
    )
    depth_share: float = setting(
        'Probability that a follow-up question goes deeper into the last answer; otherwise, it '
        'asks about another aspect of the document.',
        0.5,
        at_least=0,
        at_most=1,
    )
    context_tokens: int = setting(
        'Context limit of a dialogue in tokens: no turn is added once the document and all turns '
        'together reach it.',
        4070,
        at_least=1,
    )
    min_answer_characters: int = setting(
        'Minimum number of characters of an answer; a shorter one ends the dialogue '
        'without another attempt.',
        10,
        at_least=1,
    )
    min_question_characters: int = setting(
        'Minimum number of characters of a question; a shorter one is rejected, and another '
        'question is requested.',
        6,
        at_least=1,
    )
    max_question_characters: int = setting(
        'Maximum number of characters of a question; a longer one is rejected, and another '
        'question is requested.',
        600,
        at_least='min_question_characters',
    )
    max_similarity: float = setting(
        'Maximum similarity of a question to any earlier question in its dialogue, as the Jaccard '
        'similarity of character trigrams; a more similar question is rejected, and another one '
        'is requested.',
        0.6,
        at_least=0,
        at_most=1,
    )
    prompts: str = prompts_setting()
    attempts: int = attempts_setting(3)
    question_tokens: int = setting(
        'Maximum number of tokens that the model generates for a question.', 256, at_least=1
    )
    answer_tokens: int = setting(
        'Maximum number of tokens that the model generates for an answer.', 1024, at_least=1
    )
    temperature: float = temperature_setting(1.0)
    top_p: float = top_p_setting(1.0)


def prepare(run: StageRun[DialoguesConfig]) -> PreparedStage:
    """Return the function that generates the dialogue about one segment of a document."""
    generator = _DialogueGenerator(run)
    assumption = (
        f'the mean lengths of the paper, {QUESTION_TOKENS:.0f} tokens per question and '
        f'{ANSWER_TOKENS:.0f} per answer'
    )
    expectation = Expectation(generator.expected_requests, assumption)
    fingerprints = {'prompts': prompts.digests(run.config.prompts)}
    return PreparedStage(generator, fingerprints, expectation=expectation)


class _Turn(NamedTuple):
    """A question, its answer, and the kind of prompt that requested the question."""

    question: str
    answer: str
    kind: str


def turn_kinds(config: DialoguesConfig, rng: random.Random) -> Iterator[str]:
    """Yield the kind of the question of each turn, until the dialogue is to end.

    Args:
        config: Settings, which give the probabilities.
        rng: Random number generator for two choices: the kind of each question, and whether the
            dialogue ends after a turn.
    """
    yield 'initial'
    stop_probability = config.stop_probability
    while True:
        yield 'in_depth' if rng.random() < config.depth_share else 'expansive'
        if rng.random() < stop_probability:
            return
        stop_probability *= config.stop_growth


def _segment(row: Row) -> dict[str, str]:
    """Return the fields of a segment.

    Raises:
        UserError: A field is missing or not a string, or the language is unknown.
    """
    if row.fields.get('language') is None:
        raise UserError(
            f"{row.location} has no 'language': run `documents` first, and give its output as "
            '--input.'
        )
    fields = {name: text_field(row, name) for name in ('id', 'language', 'title', 'text')}
    try:
        get_language(fields['language'], '--language-files')
    except UserError as error:
        raise UserError(f'{row.location}: {error}') from error
    return fields


class _DialogueGenerator:
    """Callable that receives the row of a segment and generates a dialogue about the segment."""

    def __init__(self, run: StageRun[DialoguesConfig]):
        self.config = run.config
        self.model = run.model
        self.count_tokens = run.token_counter
        self.seed = run.seed

    async def __call__(self, row: Row) -> ItemOutcome:
        fields = _segment(row)
        if not fields['text'].strip():
            return ItemOutcome(reason='empty')
        dialogue = _Dialogue(self, fields['language'], fields['text'])
        end_reason = await dialogue.run(stage.item_rng(self.seed, STAGE, fields['id']))
        counts = dict(dialogue.counts)
        if not dialogue.turns:
            refusals = dialogue.refusals
            return ItemOutcome((), end_reason, counts, **dialogue.rejected, refusals=refusals)
        counts |= {f'ended: {end_reason}': 1, 'turns': len(dialogue.turns)}
        dialogue_row = {
            'id': fields['id'],
            'language': fields['language'],
            'title': fields['title'],
            'document': fields['text'],
            'data': [text for turn in dialogue.turns for text in turn[:2]],
            'kinds': [turn.kind for turn in dialogue.turns],
            'source': attribution.read_source(row) or attribution.source_of(row, id=fields['id']),
        }
        number = f'{len(dialogue.turns)} turn{"s" if len(dialogue.turns) > 1 else ""}'
        ended = stage.with_detail(end_reason, dialogue.rejected.get('detail', ''))
        facts = f'{number}; ended: {ended}'
        return ItemOutcome([dialogue_row], '', counts, detail=facts, refusals=dialogue.refusals)

    def expected_requests(
        self, row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        """Yield the expected requests for the questions and answers of a dialogue."""
        fields = _segment(row)
        if not fields['text'].strip():
            return
        config = self.config
        load = prompts.load(fields['language'], config.prompts)
        question_tokens = min(QUESTION_TOKENS, config.question_tokens)
        answer_tokens = min(ANSWER_TOKENS, config.answer_tokens)
        tokens: float = count_tokens(fields['text'])
        for kind in turn_kinds(config, stage.item_rng(self.seed, STAGE, fields['id'])):
            if tokens >= config.context_tokens:
                return
            answer_prompt = 'initial_answer' if kind == 'initial' else 'following_answer'
            frames = [
                count_tokens(chat_text(load.messages(name, '')))
                for name in (f'{kind}_question', answer_prompt)
            ]
            yield ExpectedRequest(frames[0] + tokens, question_tokens)
            yield ExpectedRequest(frames[1] + tokens + question_tokens, answer_tokens)
            tokens += question_tokens + answer_tokens


class _Dialogue:
    """A dialogue that is being generated.

    Attributes:
        turns: Finished turns.
        counts: Number of rejected questions and answers, by reason.
        rejected: Attributes of `ItemOutcome` that describe why the last request failed; empty
            before a request has failed.
        refusals: Why each refused reply was refused, by its request.
    """

    def __init__(self, generator: _DialogueGenerator, language: str, document: str):
        self.turns: list[_Turn] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.rejected: dict[str, Any] = {}
        self.refusals: dict[ModelRequest, str] = {}
        self._generator = generator
        self._language = language
        self._document = document
        self._prompts = prompts.load(language, generator.config.prompts)
        self._tokens = generator.count_tokens(document)

    async def run(self, rng: random.Random) -> str:
        """Generate turns until the dialogue ends.

        Args:
            rng: Random number generator of `turn_kinds`. Model requests do not use it, so the
                number of attempts at a turn does not change later choices.

        Returns:
            Reason why the dialogue ended.
        """
        for kind in turn_kinds(self._generator.config, rng):
            end_reason = await self._turn(kind)
            if end_reason:
                return end_reason
        return 'stopped'

    async def _turn(self, kind: str) -> str:
        """Generate a turn, and append it to `turns` if it is valid.

        Args:
            kind: Kind of the question: 'initial', 'in_depth' or 'expansive'.

        Returns:
            '' if the turn is appended; otherwise, the reason why the dialogue ends.
        """
        config = self._generator.config
        if self._tokens >= config.context_tokens:
            limit = f'{self._tokens} tokens, not fewer than {config.context_tokens}'
            self.rejected = {'detail': limit, 'text': stage.excerpt(self._document)}
            return 'context full'
        question, fault = await self._request_valid(f'{kind}_question', self._question_fault)
        if fault:
            return f'question: {fault}'
        answer_prompt = 'following_answer' if self.turns else 'initial_answer'
        answer, fault = await self._request_valid(answer_prompt, self._answer_fault, question)
        if fault:
            return f'answer: {fault}'
        self.turns.append(_Turn(question, answer, kind))
        self._tokens += self._generator.count_tokens(question) + self._generator.count_tokens(
            answer
        )
        return ''

    async def _request_valid(
        self, prompt_name: str, find_fault: Callable[[Reply], str], question: str = ''
    ) -> tuple[str, str]:
        """Request a question or an answer, with several attempts.

        Args:
            prompt_name: Name of the prompt, one of `prompts.PROMPT_NAMES`.
            find_fault: Function that returns the fault of a reply; '' = none.
            question: Question to answer; '' to request a question.

        Returns:
            Text of the last reply, and its fault; the fault is '' if the reply is valid.
        """
        config = self._generator.config
        max_tokens = config.answer_tokens if question else config.question_tokens
        sampling = ChatSampling(max_tokens, config.temperature, config.top_p, self._generator.seed)
        turns = [turn[:2] for turn in self.turns]
        messages = self._prompts.messages(prompt_name, self._document, turns, question)
        for sample in range(config.attempts):
            request = ModelRequest(STAGE, messages, sampling, sample)
            reply = await self._generator.model.complete(request)
            fault = find_fault(reply)
            if fault:
                earlier = [turn.question for turn in self.turns]
                detail = describe_fault(fault, reply.text, self._language, self._prompts, earlier)
                self.refusals[request] = stage.with_detail(fault, detail)
            # A model may end a dialogue with a short answer, so such an answer is not retried.
            if fault in ('', SHORT):
                break
            self.counts[f'fault in {"answer" if question else "question"}: {fault}'] += 1
        if fault:
            self.rejected = {'detail': detail, 'text': reply.text, 'attempts': sample + 1}
        return reply.text, fault

    def _question_fault(self, reply: Reply) -> str:
        """Return why a question is rejected; '' for a valid question."""
        config = self._generator.config
        return question_fault(
            reply,
            self._language,
            self._prompts,
            [turn.question for turn in self.turns],
            min_characters=config.min_question_characters,
            max_characters=config.max_question_characters,
            max_similarity=config.max_similarity,
        )

    def _answer_fault(self, reply: Reply) -> str:
        """Return why an answer is rejected; '' for a valid answer."""
        min_characters = self._generator.config.min_answer_characters
        return answer_fault(reply, self._language, self._prompts, min_characters=min_characters)

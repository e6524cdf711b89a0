"""Stage `dialogues`: a model asks and answers questions about a segment, turn by turn."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.data.rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import prompts, stage
from malora_jax.ultralink.languages import get_language
from malora_jax.ultralink.llm.chat import Model, Reply, Request, Sampling
from malora_jax.ultralink.shards import Manifest, text_field
from malora_jax.ultralink.stage import Outcome
from malora_jax.ultralink.text.tokens import Counter
from malora_jax.ultralink.turn_checks import SHORT, answer_fault, question_fault

STAGE = 'dialogues'


@dataclasses.dataclass(frozen=True)
class DialoguesConfig:
    """How dialogues go on and end, and what their turns must be.

    The numbers of the first five are the paper's, the others our own. With them a dialogue that
    nothing else ends has 2 to 6 turns, 4.14 on average.

    Attributes:
        stop_probability: that the dialogue ends after its second turn.
        stop_growth: what this is multiplied by from turn to turn, up to certainty.
        depth_share: of further questions that go deeper into the last answer; the others open up
            another side of the subject.
        context_tokens: no question is asked when document and turns have so many.
        least_answer: characters; a shorter answer ends the dialogue.
        least_question, most_question: characters.
        most_similarity: of a question to an earlier one of the same dialogue: the share of common
            runs of three letters.
        attempts: answers that a turn is tried with, if those before have a fault.
        question_tokens, answer_tokens: the most.
        temperature, top_p: of what is drawn.
    """

    stop_probability: float = 0.1
    stop_growth: float = 2.0
    depth_share: float = 0.5
    context_tokens: int = 4070
    least_answer: int = 10
    least_question: int = 6
    most_question: int = 600
    most_similarity: float = 0.6
    attempts: int = 3
    question_tokens: int = 256
    answer_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        errors.check_types(STAGE, self)
        for name in ('stop_probability', 'depth_share', 'most_similarity'):
            if not 0 <= getattr(self, name) <= 1:
                raise errors.out_of_range(f'{STAGE}.{name}', getattr(self, name), 'from 0 to 1')
        for name in ('context_tokens', 'least_answer', 'least_question', 'attempts'):
            if getattr(self, name) < 1:
                raise errors.out_of_range(f'{STAGE}.{name}', getattr(self, name), 'at least 1')
        if self.stop_growth < 1:
            raise errors.out_of_range(f'{STAGE}.stop_growth', self.stop_growth, 'at least 1')
        if self.most_question < self.least_question:
            right = 'at least least_question'
            raise errors.out_of_range(f'{STAGE}.most_question', self.most_question, right)
        Sampling(self.question_tokens, self.temperature, self.top_p)
        Sampling(self.answer_tokens, self.temperature, self.top_p)


async def dialogues(
    config: DialoguesConfig,
    model: Model,
    count: Counter,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    seed: int = 0,
    concurrency: int = 64,
    shard_items: int = stage.SHARD_ITEMS,
) -> Manifest:
    """Makes a dialogue of each segment.

    Args:
        config: how.
        model: asks and answers.
        count: of tokens.
        inputs: rows of the stage `documents`, or of their form.
        output: directory for the rows.
        seed: of what is drawn, the model's answers included.
        concurrency: dialogues at a time, each with one request.
        shard_items: see `stage.run`.

    Raises:
        UserError: as `stage.run` and the model; or a row has no id, title, text, or an unknown
            language.
        OSError: the model cannot answer.
    """
    settings = dataclasses.asdict(config) | {
        'llm': model.name,
        'tokenizer': count.fingerprint,
        'prompts': prompts.digest(),
    }
    return await stage.run(
        STAGE,
        _Dialogues(config, model, count, seed),
        inputs,
        output,
        settings=settings,
        seed=seed,
        concurrency=concurrency,
        shard_items=shard_items,
    )


class _Turn(NamedTuple):
    """A question with its answer, and which prompt asked it."""

    question: str
    answer: str
    kind: str


class _Dialogues:
    """Makes dialogues."""

    def __init__(self, config: DialoguesConfig, model: Model, count: Counter, seed: int):
        self.config = config
        self.model = model
        self.count = count
        self.seed = seed

    async def __call__(self, row: Row) -> Outcome:
        fields = {name: text_field(row, name) for name in ('id', 'language', 'title', 'text')}
        try:
            get_language(fields['language'])
        except UserError as error:
            raise UserError(f'{row.place}: {error}') from error
        if not fields['text'].strip():
            return Outcome(reason='empty')
        dialogue = _Dialogue(self, fields['language'], fields['text'])
        end = await dialogue.run(stage.random_of(self.seed, STAGE, fields['id']))
        counts = dict(dialogue.counts)
        if not dialogue.turns:
            return Outcome((), end, counts)
        counts |= {f'ended: {end}': 1, 'turns': len(dialogue.turns)}
        made = {
            'id': fields['id'],
            'language': fields['language'],
            'title': fields['title'],
            'document': fields['text'],
            'data': [text for turn in dialogue.turns for text in turn[:2]],
            'kinds': [turn.kind for turn in dialogue.turns],
        }
        return Outcome([made], '', counts)


class _Dialogue:
    """One dialogue.

    Attributes:
        turns: that are done.
        counts: of questions and answers that were not taken, by reason.
    """

    def __init__(self, maker: _Dialogues, language: str, document: str):
        self.turns: list[_Turn] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._maker = maker
        self._language = language
        self._document = document
        self._prompts = prompts.load(language)
        self._tokens = maker.count(document)

    async def run(self, rng: Any) -> str:
        """Goes on until the dialogue ends.

        Args:
            rng: what is drawn comes from; drawn is only what the paper draws, so that a turn that
                is tried again changes nothing of it.

        Returns:
            Why it ended.
        """
        config = self._maker.config
        end, stop = await self._turn('initial'), config.stop_probability
        while not end:
            kind = 'in_depth' if rng.random() < config.depth_share else 'expansive'
            end = await self._turn(kind)
            if not end and rng.random() < stop:
                end = 'stopped'
            stop *= config.stop_growth
        return end

    async def _turn(self, kind: str) -> str:
        """Adds a turn; if it cannot, says why the dialogue ends."""
        config = self._maker.config
        if self._tokens >= config.context_tokens:
            return 'context full'
        question, fault = await self._tried(f'{kind}_question', self._question_fault)
        if fault:
            return f'question: {fault}'
        answering = 'following_answer' if self.turns else 'initial_answer'
        answer, fault = await self._tried(answering, self._answer_fault, question)
        if fault:
            return f'answer: {fault}'
        self.turns.append(_Turn(question, answer, kind))
        self._tokens += self._maker.count(question) + self._maker.count(answer)
        return ''

    async def _tried(
        self, asking: str, fault_of: Callable[[Reply], str], question: str = ''
    ) -> tuple[str, str]:
        """An answer without a fault and '', or the last one with its fault."""
        config = self._maker.config
        most = config.answer_tokens if question else config.question_tokens
        sampling = Sampling(most, config.temperature, config.top_p, self._maker.seed)
        turns = [turn[:2] for turn in self.turns]
        messages = self._prompts.messages(asking, self._document, turns, question)
        for sample in range(config.attempts):
            request = Request(STAGE, messages, sampling, sample)
            reply = await self._maker.model.complete(request)
            fault = fault_of(reply)
            # A short answer is the model's way to end a dialogue, and not tried again.
            if fault in ('', SHORT):
                break
            self.counts[f'fault in {"answer" if question else "question"}: {fault}'] += 1
        return reply.text, fault

    def _question_fault(self, reply: Reply) -> str:
        config = self._maker.config
        return question_fault(
            reply,
            self._language,
            self._prompts,
            [turn.question for turn in self.turns],
            least_characters=config.least_question,
            most_characters=config.most_question,
            most_similarity=config.most_similarity,
        )

    def _answer_fault(self, reply: Reply) -> str:
        least = self._maker.config.least_answer
        return answer_fault(reply, self._language, self._prompts, least_characters=least)

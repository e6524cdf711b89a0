"""Stage `translate`: translate English chat, mathematics and code, and verify each message.

A conversation is translated message by message. Each request contains one demonstration (one-shot
prompting), and the previous message with its translation. A translation with a fault (see
`translation_checks`) is requested again; after the maximum number of attempts, the whole
conversation is dropped. The paper does not verify translations.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError, short_repr
from malora_jax.ultralink import conversations, translation_checks, translations
from malora_jax.ultralink.conversations import Conversation
from malora_jax.ultralink.llm.chat import ChatSampling, ModelRequest, chat_text
from malora_jax.ultralink.prompt_sets import prompts_setting
from malora_jax.ultralink.settings import (
    Settings,
    attempts_setting,
    language_setting,
    setting,
    temperature_setting,
    top_p_setting,
)
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
)
from malora_jax.ultralink.text import spans
from malora_jax.ultralink.text.language_identification import describe_language, identify_language
from malora_jax.ultralink.translation_checks import TranslationFault

STAGE = 'translate'
# Kinds of `translation_checks` that apply to each subset.
_CHECK_KINDS = {
    'chat_agnostic': ('numbers', 'latex', 'code', 'language', 'length_ratio'),
    'math': ('numbers', 'final_answer', 'latex', 'code', 'language', 'length_ratio'),
    'code': ('numbers', 'latex', 'code', 'identifiers', 'language', 'length_ratio'),
}


@dataclasses.dataclass(frozen=True)
class TranslateConfig(Settings):
    """Settings of translation: the target language, and model requests.

    The paper gives no values; the defaults are our own.
    """

    section = STAGE
    language: str = language_setting(
        'Language code of the translations.', translations.target_languages
    )
    prompts: str = prompts_setting()
    attempts: int = attempts_setting(3)
    max_tokens: int = setting(
        'Maximum number of tokens that the model generates for a message.', 4096, at_least=1
    )
    temperature: float = temperature_setting(0.3)
    top_p: float = top_p_setting(1.0)


def prepare(run: StageRun[TranslateConfig]) -> PreparedStage:
    """Return the function that translates one conversation.

    The id of a translated row is LANGUAGE-ID, where ID is the id of the source row.
    """
    translator = _Translator(run)
    fingerprints = {'prompts': translations.digest(run.config.language, run.config.prompts)}
    assumption = 'translations that are as much longer as in the demonstration'
    expectation = Expectation(translator.expected_requests, assumption)
    return PreparedStage(translator, fingerprints, expectation=expectation)


class _Translator:
    """Callable that receives the row of a conversation and translates the conversation."""

    def __init__(self, run: StageRun[TranslateConfig]):
        config = self._config = run.config
        self._model = run.model
        self._sampling = ChatSampling(config.max_tokens, config.temperature, config.top_p, run.seed)

    async def __call__(self, row: Row) -> ItemOutcome:
        source = _source(row)
        counts: collections.Counter[str] = collections.Counter()
        refusals: dict[ModelRequest, str] = {}
        translated: list[str] = []
        for number, text in enumerate(source.data):
            previous = (source.data[number - 1], translated[-1]) if number else None
            translation, faults = await self._translate_message(
                text, previous, source.subset, counts, refusals
            )
            if faults:
                detail = _describe(faults, translation)
                return ItemOutcome(
                    (),
                    faults[0].kind,
                    counts,
                    detail=f'message {number + 1}: {detail}',
                    text=translation,
                    attempts=self._config.attempts,
                    refusals=refusals,
                )
            translated.append(translation)
        language = self._config.language
        target = source._replace(id=f'{language}-{source.id}', language=language, data=translated)
        return ItemOutcome([target.row], '', counts, refusals=refusals)

    def expected_requests(
        self, row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        """Yield the expected request for each message of a conversation."""
        source = _source(row)
        prompt = self._prompt(source.subset)
        growth = count_tokens(prompt.translation) / count_tokens(prompt.source)
        frame_tokens = count_tokens(chat_text(prompt.messages('')))
        previous_tokens = 0
        for text in source.data:
            tokens = count_tokens(text)
            prompt_tokens = frame_tokens + tokens + (1 + growth) * previous_tokens
            yield ExpectedRequest(prompt_tokens, growth * tokens)
            previous_tokens = tokens

    def _prompt(self, subset: str) -> translations.TranslationPrompt:
        return translations.load(self._config.language, subset, self._config.prompts)

    async def _translate_message(
        self,
        text: str,
        previous: tuple[str, str] | None,
        subset: str,
        counts: collections.Counter[str],
        refusals: dict[ModelRequest, str],
    ) -> tuple[str, list[TranslationFault]]:
        """Translate one message, with several attempts.

        Args:
            text: Message to translate.
            previous: Previous message and its translation; None for the first message.
            subset: Subset of the conversation.
            counts: Number of faults by kind, which is updated.
            refusals: Why each refused reply was refused, by its request, which is updated.

        Returns:
            Translation of the last attempt, and its faults, in the order of
            `translation_checks.KINDS`.
        """
        messages = self._prompt(subset).messages(text, previous)
        for sample in range(self._config.attempts):
            request = ModelRequest(STAGE, messages, self._sampling, sample)
            reply = await self._model.complete(request)
            faults = (
                [TranslationFault(reply.finish_reason, 'the reply is incomplete')]
                if reply.finish_reason != 'stop'
                else translation_checks.faults(
                    text,
                    reply.text,
                    self._config.language,
                    identify_language,
                    _CHECK_KINDS[subset],
                )
            )
            if not faults:
                break
            refusals[request] = _describe(faults, reply.text)
            counts.update(f'fault: {kind}' for kind in {fault.kind for fault in faults})
        return reply.text, faults


def _source(row: Row) -> Conversation:
    """Return the conversation of a row.

    Raises:
        UserError: The row is not a conversation, or cannot be translated.
    """
    language, subset = row.fields.get('language'), row.fields.get('subset')
    # The language of other rows need not be known.
    if language in (None, translations.SOURCE_LANGUAGE):
        source = conversations.read(row)
        if source.subset in translations.SUBSETS:
            return source
        subset = source.subset
    raise UserError(
        f'{row.location} has language {short_repr(language)} and subset {short_repr(subset)}: only '
        f'English rows of {", ".join(translations.SUBSETS)} can be translated.'
    )


def _describe(faults: Sequence[TranslationFault], translation: str) -> str:
    """Return the kinds and the details of faults, for a language with its probability."""
    parts = []
    for fault in faults:
        detail = fault.detail
        if fault.kind == 'language':
            detail += f' ({describe_language(spans.split(translation).prose)})'
        parts.append(f'{fault.kind}: {detail}')
    return '; '.join(parts)

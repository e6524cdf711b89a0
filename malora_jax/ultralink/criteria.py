"""Stage `criteria`: select English conversations that are language-agnostic.

The stage reads the conversations of other stages; a row without a language is English chat. It also
reads ShareGPT files, one row per line or all rows in a JSON array, and repairs them as the stage
`import` does.

As in the paper (section 3.3 and the appendix), conversations that are specific to a culture are
dropped before translation: first by cheap rules, then with one request in which a model scores
seven criteria, each 0 or 1. A conversation is kept if all scores are 0.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from malora_jax.data.file_rows import Row, file_kind, read_rows
from malora_jax.errors import UserError, short_repr
from malora_jax.ultralink import conversations, prompt_sets, shards, source_formats
from malora_jax.ultralink.conversations import Conversation
from malora_jax.ultralink.language_schema import CRITERIA
from malora_jax.ultralink.languages import LANGUAGES, get_language
from malora_jax.ultralink.llm.chat import (
    ChatMessage,
    ChatSampling,
    ModelRequest,
    Reply,
    chat_text,
)
from malora_jax.ultralink.prompt_sets import prompts_setting
from malora_jax.ultralink.settings import (
    Settings,
    attempts_setting,
    setting,
    temperature_setting,
)
from malora_jax.ultralink.source_formats import ReadConversation
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
    excerpt,
)
from malora_jax.ultralink.text.language_identification import describe_language, identify_language

STAGE = 'criteria'
_SOURCE_LANGUAGE = 'en'
_EXAMPLE = json.dumps(dict.fromkeys(CRITERIA, 0))
_LINKS = ('http://', 'https://', 'www.', '.com')
_OBJECT = re.compile(r'\{[^{}]*\}')


@dataclasses.dataclass(frozen=True)
class CriteriaConfig(Settings):
    """Settings of the selection of conversations: limits on their length, and model settings.

    The paper drops conversations by length too, but does not give the limits.
    """

    section = STAGE
    min_characters: int = setting(
        'Minimum number of characters of a conversation; a shorter one is dropped.', 100, at_least=0
    )
    max_characters: int = setting(
        'Maximum number of characters of a conversation; a longer one is dropped.',
        12_000,
        at_least='min_characters',
    )
    prompts: str = prompts_setting()
    attempts: int = attempts_setting(3)
    temperature: float = temperature_setting(0.3)


def prepare(run: StageRun[CriteriaConfig]) -> PreparedStage:
    """Return the function that keeps or drops a conversation, by rules and by a model's scores."""
    config = run.config
    sampling = ChatSampling(128, config.temperature, seed=run.seed)
    system = system_message(config.prompts)

    async def process(row: Row) -> ItemOutcome:
        conversation, found = _conversation(row)
        if conversation is None:
            text = excerpt(json.dumps(row.fields['conversations'], ensure_ascii=False))
            return ItemOutcome(reason='not in turn', detail=found.detail, text=text)
        repairs = source_formats.count_repairs(found.repairs)
        fault = rule_fault(conversation.data, config)
        transcript = _transcript(conversation.data)
        if fault:
            detail = _describe_rule_fault(fault, '\n'.join(conversation.data))
            return ItemOutcome((), fault, repairs, detail=detail, text=excerpt(transcript))
        messages = _messages(system, transcript)
        refusals: dict[ModelRequest, str] = {}
        for sample in range(config.attempts):
            request = ModelRequest(STAGE, messages, sampling, sample)
            reply = await run.model.complete(request)
            scores = parse_scores(reply)
            if scores:
                break
            refusals[request] = f'no scores (finish reason {reply.finish_reason})'
        else:
            return ItemOutcome(
                reason='no scores',
                counts=repairs,
                detail=f'finish reason {reply.finish_reason}',
                text=reply.text,
                attempts=config.attempts,
                refusals=refusals,
            )
        met = [name for name, score in scores.items() if score]
        counts = repairs | {f'criterion: {name}': 1 for name in met}
        if met:
            return ItemOutcome(
                (),
                'several criteria' if len(met) > 1 else met[0],
                counts,
                detail=', '.join(met),
                text=excerpt(transcript),
                attempts=sample + 1,
                refusals=refusals,
            )
        return ItemOutcome([conversation.row], '', counts, refusals=refusals)

    def expected_requests(
        row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        conversation, _ = _conversation(row)
        if conversation is None or rule_fault(conversation.data, config):
            return
        messages = _messages(system, _transcript(conversation.data))
        yield ExpectedRequest(count_tokens(chat_text(messages)), count_tokens(_EXAMPLE))

    expectation = Expectation(expected_requests, 'replies as long as the example')
    return PreparedStage(process, {'prompt': system}, expectation=expectation)


def system_message(prompt_set: str) -> str:
    """Return the system message of the requests.

    Args:
        prompt_set: Name or path of the prompt set.

    Raises:
        UserError: There is no such set, or it has no criteria.
    """
    english = get_language(_SOURCE_LANGUAGE)
    text = prompt_sets.find(english, prompt_set).criteria
    if text is None:
        raise prompt_sets.missing('criteria', english, prompt_set)
    return text.strip()


def rule_fault(data: Sequence[str], config: CriteriaConfig) -> str:
    """Return why the rules drop a conversation; '' if the model must score it.

    Args:
        data: Messages of the conversation.
        config: Settings, which give the limits on length.
    """
    text = '\n'.join(data)
    if not config.min_characters <= len(text) <= config.max_characters:
        return 'length'
    if any(link in text.lower() for link in _LINKS):
        return 'link'
    return '' if identify_language(text) == 'en' else 'language'


def _describe_rule_fault(fault: str, text: str) -> str:
    """Return the details of a fault that `rule_fault` has found in a text."""
    if fault == 'length':
        return f'{len(text)} characters'
    if fault == 'language':
        return f'{describe_language(text)}, not en'
    return next(link for link in _LINKS if link in text.lower())


def parse_scores(reply: Reply) -> Mapping[str, int] | None:
    """Parse the scores of all criteria in a reply; None if they are incomplete or malformed."""
    objects = _OBJECT.findall(reply.text)
    if reply.finish_reason != 'stop' or len(objects) != 1:
        return None
    try:
        scores = json.loads(objects[0])
    except ValueError:
        return None
    # Reject true and false, although they equal 1 and 0.
    whole = all(type(score) is int and score in (0, 1) for score in scores.values())
    return scores if whole and set(scores) == set(CRITERIA) else None


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the rows of conversations; a .json file may be an array of rows.

    Raises:
        UserError: A file is missing or broken, or two rows have the same id.
    """
    rows = (
        read_rows(path) if file_kind(path) == '.json' else shards.read([path]) for path in paths
    )
    return shards.ensure_unique_ids(itertools.chain.from_iterable(rows))


def _conversation(row: Row) -> tuple[Conversation | None, ReadConversation]:
    """Return the conversation of a row, and how it was repaired if it is a ShareGPT row.

    The conversation is None if it cannot be repaired.

    Raises:
        UserError: A field is missing or not valid, or `conversations` is not a list of turns.
    """
    fields = dict(row.fields)
    found = ReadConversation('', 'chat_agnostic')
    if 'language' not in fields:
        fields = {'subset': found.subset, **fields, 'language': 'en'}
    if 'conversations' in fields:
        found = source_formats.read(row)
        if found.reason == source_formats.MALFORMED:
            raise UserError(f'{row.location}: {found.detail}.')
        if found.reason:
            return None, found
        fields['data'] = list(found.data)
    language = fields['language']
    if isinstance(language, str) and language not in LANGUAGES:
        raise UserError(
            f'{row.location} has language {short_repr(language)}: give English conversations only.'
        )
    return conversations.read(Row(row.location, fields)), found


def _messages(system: str, transcript: str) -> tuple[ChatMessage, ...]:
    """Return the messages of the request that scores a conversation."""
    return ChatMessage('system', system), ChatMessage('user', transcript)


def _transcript(data: Sequence[str]) -> str:
    """Return a conversation as text, each message in tags with its role."""
    parts = [
        f'<{role}>\n{text}\n</{role}>'
        for role, text in zip(('user', 'assistant') * (len(data) // 2), data, strict=True)
    ]
    return '\n'.join(parts)

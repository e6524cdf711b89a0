"""Stage `translate`: English chat, maths and code in another language, each text verified.

A conversation is translated text by text, each with one demonstration and the text before it. What
has a fault (see `checks`) is asked for again, and after so many attempts the conversation is
dropped; the paper verifies nothing.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from malora_jax import errors
from malora_jax.data.rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import checks, conversations, stage, translations
from malora_jax.ultralink.languages import get_language, identify
from malora_jax.ultralink.llm.chat import Model, Request, Sampling
from malora_jax.ultralink.manifest import Manifest
from malora_jax.ultralink.stage import Outcome

STAGE = 'translate'
_SOURCE = 'en'
_KEPT = {
    'chat_agnostic': ('numbers', 'latex', 'code', 'language'),
    'math': ('numbers', 'final_answer', 'latex', 'code', 'language'),
    'code': ('numbers', 'latex', 'code', 'identifiers', 'language'),
}


@dataclasses.dataclass(frozen=True)
class TranslateConfig:
    """Into what and how is translated. The paper says nothing of it; the numbers are our own.

    Attributes:
        language: its code.
        attempts: how often a text is tried.
        max_tokens: the most of a translation.
        temperature, top_p: of what is drawn.
    """

    language: str
    attempts: int = 3
    max_tokens: int = 4096
    temperature: float = 0.3
    top_p: float = 1.0

    def __post_init__(self):
        get_language(self.language)
        errors.check_types(STAGE, self)
        if self.language not in translations.CODES:
            right = f'one of {", ".join(translations.CODES)}'
            raise errors.out_of_range(f'{STAGE}.language', self.language, right)
        if self.attempts < 1:
            raise errors.out_of_range(f'{STAGE}.attempts', self.attempts, 'at least 1')
        Sampling(self.max_tokens, self.temperature, self.top_p)


async def translate(
    config: TranslateConfig,
    model: Model,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    seed: int = 0,
    concurrency: int = 64,
    shard_items: int = stage.SHARD_ITEMS,
) -> Manifest:
    """Translates conversations; their ids begin with the language then.

    Args:
        config: into what, and how.
        model: translates.
        inputs: rows as in `conversations`, in English.
        output: directory for the rows.
        seed: of what the model draws.
        concurrency: conversations at a time, each with one request.
        shard_items: see `stage.run`.

    Raises:
        UserError: as `stage.run` and the model; or a row is no English conversation, or is about a
            document.
        OSError: the model cannot answer.
    """
    settings = dataclasses.asdict(config) | {
        'llm': model.name,
        'prompts': translations.digest(config.language),
    }
    return await stage.run(
        STAGE,
        _Translator(config, model, seed),
        inputs,
        output,
        settings=settings,
        seed=seed,
        concurrency=concurrency,
        shard_items=shard_items,
    )


class _Translator:
    """Translates a conversation."""

    def __init__(self, config: TranslateConfig, model: Model, seed: int):
        self._config = config
        self._model = model
        self._sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed)

    async def __call__(self, row: Row) -> Outcome:
        source = conversations.read(row)
        if source.language != _SOURCE or source.subset not in translations.SUBSETS:
            raise UserError(
                f'{row.place} is {source.language} {source.subset}: only English '
                f'{", ".join(translations.SUBSETS)} are translated.'
            )
        counts: collections.Counter[str] = collections.Counter()
        translated: list[str] = []
        for number, text in enumerate(source.data):
            before = (source.data[number - 1], translated[-1]) if number else None
            translation, fault = await self._text(text, before, source.subset, counts)
            if fault:
                return Outcome((), fault, counts)
            translated.append(translation)
        language = self._config.language
        made = source._replace(id=f'{language}-{source.id}', language=language, data=translated)
        return Outcome([made.row], '', counts)

    async def _text(
        self,
        text: str,
        before: tuple[str, str] | None,
        subset: str,
        counts: collections.Counter[str],
    ) -> tuple[str, str]:
        """A translation without a fault and '', or the last one with its first fault.

        Args:
            text: that is to be translated.
            before: the text before it and its translation.
            subset: of the conversation.
            counts: of faults, to be added to.
        """
        messages = translations.load(self._config.language, subset).messages(text, before)
        for sample in range(self._config.attempts):
            reply = await self._model.complete(Request(STAGE, messages, self._sampling, sample))
            found = (
                [reply.finish_reason]
                if reply.finish_reason != 'stop'
                else self._faults(text, reply.text, subset)
            )
            if not found:
                return reply.text, ''
            counts.update(f'fault: {kind}' for kind in found)
        return reply.text, found[0]

    def _faults(self, text: str, translation: str, subset: str) -> list[str]:
        """The kinds of faults, each once, in the order of `checks.KINDS`."""
        found = checks.faults(text, translation, self._config.language, identify, _KEPT[subset])
        return list(dict.fromkeys(fault.kind for fault in found))

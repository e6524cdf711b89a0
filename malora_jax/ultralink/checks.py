r"""Checks of a translation: numbers, final answer, LaTeX, code, identifiers and language.

The paper verifies nothing after translation (section 3.3). All functions are pure. Each returns the
faults of one kind; `faults` combines several kinds:

- `numbers`: Numbers in the prose, each as often as in the source, in any notation. A number that
  `text.quantities` cannot read, such as 三 for 3, counts as missing.
- `final_answer`: The last line `#### 102` of GSM8K, and `\boxed{…}`.
- `latex`: Formulas, as often as in the source, ignoring spaces and the words in `\text{…}`.
- `code`: Fenced code blocks, byte by byte and in order. Comments in them must stay untranslated,
  because otherwise the code could not be compared.
- `identifiers`: Names from code that the prose mentions. The translation may mark more words as
  code.
- `language`: The language of the prose, if there is enough prose to identify it.

An empty translation is always a fault, of the kind `empty`.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from malora_jax.ultralink.text import quantities, spans

# Function from a text to the code of its language, such as 'fr'.
Identify = Callable[[str], str]

KINDS = ('empty', 'numbers', 'final_answer', 'latex', 'code', 'identifiers', 'language')
# Minimum number of letters and of Chinese characters. Below both, the language is not checked,
# because names and greetings look the same in many languages.
_LEAST_LETTERS, _LEAST_HAN = 30, 10

# Matches the last line only, because `####` elsewhere is a Markdown heading.
_TAIL = re.compile(r'^[ \t]*####[ \t]*([^\s#].*?)\s*\Z', re.MULTILINE)
_WORDS_IN_LATEX = re.compile(r'(\\(?:text\w*|mathrm|mbox)\s*)\{[^{}]*\}')
_HAN = re.compile(r'[\u3400-\u9fff]')


class Fault(NamedTuple):
    """An error in a translation.

    Attributes:
        kind: One of `KINDS`.
        detail: Human-readable description, such as what is missing or added.
    """

    kind: str
    detail: str


def faults(
    source: str,
    translation: str,
    language: str,
    identify: Identify,
    kinds: Collection[str] = KINDS,
) -> list[Fault]:
    """Return the faults of a translation.

    Example:
        faults('I have 3 cups.', "J'ai 4 tasses.", 'fr', languages.identify, ['numbers'])

    Args:
        source: English source text.
        translation: Translated text.
        language: Code of the target language.
        identify: Function that returns the language code of a text.
        kinds: Kinds of faults to check for. An empty translation is always a fault, and then the
            only one.
    """
    if source.strip() and not translation.strip():
        return [Fault('empty', 'nothing was written')]
    before, after = spans.split(source), spans.split(translation)
    found = {
        'numbers': lambda: numbers(before, after),
        'final_answer': lambda: final_answer(source, translation),
        'latex': lambda: latex(before, after),
        'code': lambda: code(before, after),
        'identifiers': lambda: identifiers(before, after),
        'language': lambda: in_language(after.prose, language, identify),
    }
    return [fault for kind, check in found.items() if kind in kinds for fault in check()]


def numbers(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Compare the numbers in the prose; return those that are missing or added."""
    missing, extra = quantities.same(source.prose, translation.prose)
    return _differences('numbers', missing, extra)


def final_answer(source: str, translation: str) -> list[Fault]:
    """Compare the answer after '####' and the boxed answers, if the source has them."""
    tail, kept = _TAIL.search(source), _TAIL.search(translation)
    if tail and not kept:
        return [Fault('final_answer', f'no last line #### {tail[1]}')]
    if tail and kept and not _same_value(tail[1], kept[1]):
        return [Fault('final_answer', f'#### {kept[1]}, not #### {tail[1]}')]
    before, after = _boxed(source), _boxed(translation)
    if len(before) != len(after):
        return [Fault('final_answer', f'{len(after)} boxed, not {len(before)}')]
    return [
        Fault('final_answer', f'{new} is boxed, not {old}')
        for old, new in zip(before, after, strict=True)
        if not _same_value(_canonical(old), _canonical(new))
    ]


def latex(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Compare the formulas; return those that are missing or added."""
    before, after = (Counter(map(_canonical, text.latex)) for text in (source, translation))
    return _differences('latex', (before - after).elements(), (after - before).elements())


def code(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Compare the fenced code blocks in order; return a fault for each difference."""
    if len(source.fences) != len(translation.fences):
        detail = f'{len(translation.fences)} fenced blocks, not {len(source.fences)}'
        return [Fault('code', detail)]
    return [
        Fault('code', f'fenced block {number} is not the same')
        for number, blocks in enumerate(zip(source.fences, translation.fences, strict=True), 1)
        if blocks[0] != blocks[1]
    ]


def identifiers(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Return the names from code that the translation lacks."""
    text = '\n'.join((translation.prose, *translation.inline))
    missing = [
        name
        for name in sorted(spans.identifiers(source))
        # A Chinese character may be adjacent to a name, a Latin letter may not.
        if not re.search(rf'(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])', text)
    ]
    return _differences('identifiers', missing, ())


def in_language(prose: str, language: str, identify: Identify) -> list[Fault]:
    """Check the language of prose, if there is enough of it to identify the language."""
    letters, han = sum(map(str.isalpha, prose)), len(_HAN.findall(prose))
    if letters < _LEAST_LETTERS and han < _LEAST_HAN:
        return []
    found = identify(prose)
    return [] if found == language else [Fault('language', f'{found}, not {language}')]


def _boxed(text: str) -> list[str]:
    r"""Return the content of each `\boxed{…}`, which may contain nested braces."""
    found = []
    for match in re.finditer(r'\\boxed\s*\{', text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {'{': 1, '}': -1}.get(text[end], 0)
            end += 1
        found.append(text[match.end() : end - 1 if not depth else end])
    return found


def _same_value(before: str, after: str) -> bool:
    """Return whether two answers are the same text, or the same number in another notation."""
    if before == after:
        return True
    alike = [re.sub(r'[\d.,\s\u00a0\u202f]', '', answer) for answer in (before, after)]
    return alike[0] == alike[1] and quantities.same(before, after) == ([], [])


def _canonical(formula: str) -> str:
    return re.sub(r'\s+', '', _WORDS_IN_LATEX.sub(r'\1{}', formula))


def _differences(kind: str, missing: Iterable[str], extra: Iterable[str]) -> list[Fault]:
    return [
        Fault(kind, f'{what}: {", ".join(values)}')
        for what, values in (('missing', list(missing)), ('too much', list(extra)))
        if values
    ]

r"""What a translation must keep: numbers, the final answer, LaTeX, code, names and the language.

The paper verifies nothing after translating (section 3.3). Pure functions, each of which returns
the faults of its kind; `faults` asks for several kinds.

- `numbers`: those of the prose, each as often as in the source, however they are written; what
  `text.quantities` cannot read, such as 三 for 3, counts as missing.
- `final_answer`: the last line `#### 102` of GSM8K, and `\boxed{…}`.
- `latex`: the formulas, as often as in the source, but for spaces and the words in `\text{…}`.
- `code`: fenced blocks, byte by byte and in order. Comments in them stay as they are, untranslated:
  otherwise nothing could be compared.
- `identifiers`: names of code that the prose speaks of; other words may be made code.
- `language`: that of the prose, if there is enough to tell; nothing may be empty.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from malora_jax.ultralink.text import quantities, spans

# From a text to the code of its language, such as 'fr'.
Identify = Callable[[str], str]

KINDS = ('empty', 'numbers', 'final_answer', 'latex', 'code', 'identifiers', 'language')
# With fewer letters than that, the language is not judged: names and greetings look like any.
_LEAST_LETTERS, _LEAST_HAN = 30, 10

# Only in the last line: elsewhere it is a heading of Markdown.
_TAIL = re.compile(r'^[ \t]*####[ \t]*([^\s#].*?)\s*\Z', re.MULTILINE)
_WORDS_IN_LATEX = re.compile(r'(\\(?:text\w*|mathrm|mbox)\s*)\{[^{}]*\}')
_HAN = re.compile(r'[\u3400-\u9fff]')


class Fault(NamedTuple):
    """Something that a translation has lost or made.

    Attributes:
        kind: one of `KINDS`.
        detail: what is missing or too much, for people.
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
    """The faults of a translation.

    Args:
        source: in English.
        translation: of it.
        language: the code of the language wanted.
        identify: tells the language of a text.
        kinds: what to look for; an empty translation is always a fault, and then the only one.
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
    """Numbers of the prose that are missing or too many."""
    missing, extra = quantities.same(source.prose, translation.prose)
    return _differences('numbers', missing, extra)


def final_answer(source: str, translation: str) -> list[Fault]:
    """The number after '####' and what is boxed, if the source has them."""
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
    """Formulas that are missing or too many."""
    before, after = (Counter(map(_canonical, text.latex)) for text in (source, translation))
    return _differences('latex', (before - after).elements(), (after - before).elements())


def code(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Fenced blocks that are not the source's, or not in its order."""
    if len(source.fences) != len(translation.fences):
        detail = f'{len(translation.fences)} fenced blocks, not {len(source.fences)}'
        return [Fault('code', detail)]
    return [
        Fault('code', f'fenced block {number} is not the same')
        for number, blocks in enumerate(zip(source.fences, translation.fences, strict=True), 1)
        if blocks[0] != blocks[1]
    ]


def identifiers(source: spans.Spans, translation: spans.Spans) -> list[Fault]:
    """Names of code that the translation does not have."""
    text = '\n'.join((translation.prose, *translation.inline))
    missing = [
        name
        for name in sorted(spans.identifiers(source))
        # A Chinese letter may touch a name, a Latin one may not.
        if not re.search(rf'(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])', text)
    ]
    return _differences('identifiers', missing, ())


def in_language(prose: str, language: str, identify: Identify) -> list[Fault]:
    """Whether prose is in a language, if there is enough of it."""
    letters, han = sum(map(str.isalpha, prose)), len(_HAN.findall(prose))
    if letters < _LEAST_LETTERS and han < _LEAST_HAN:
        return []
    found = identify(prose)
    return [] if found == language else [Fault('language', f'{found}, not {language}')]


def _boxed(text: str) -> list[str]:
    r"""What is in each `\boxed{…}`, with braces in it."""
    found = []
    for match in re.finditer(r'\\boxed\s*\{', text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {'{': 1, '}': -1}.get(text[end], 0)
            end += 1
        found.append(text[match.end() : end - 1 if not depth else end])
    return found


def _same_value(before: str, after: str) -> bool:
    """Whether two answers are the same text, or one and the same number."""
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

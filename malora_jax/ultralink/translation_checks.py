r"""Checks of a translation: numbers, answer, LaTeX, code, identifiers, language and length.

The paper does not verify translations (section 3.3). All functions are pure. Each returns the
faults of one kind; `faults` combines several kinds:

- `check_numbers`: Numbers in the prose, each as often as in the source, in any notation. A number
  that `text.quantities` cannot read, such as 三 for 3, counts as missing.
- `check_final_answer`: The answer in the last line, such as `#### 102` in GSM8K, and in
  `\boxed{…}`.
- `check_latex`: Formulas, as often as in the source, ignoring spaces and the words in `\text{…}`.
- `check_code`: Fenced code blocks, byte by byte and in order. Comments in them must stay
  untranslated, because otherwise the code could not be compared.
- `check_identifiers`: Names from code that the prose mentions. The translation may mark more words
  as code than the source.
- `check_language`: The language of the prose, if there is enough prose to identify it.
- `check_untranslated`: Prose that repeats the source, a fault of the kind `language`.
- `check_length_ratio`: Prose that is much shorter or longer than the source, such as 'Yes.' or a
  refusal to translate.

An empty translation is always a fault, of the kind `empty`.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from malora_jax.ultralink.text import quantities, spans
from malora_jax.ultralink.text.scripts import weigh_letters

# Function from a text to the code of its language, such as 'fr'.
LanguageIdentifier = Callable[[str], str]

KINDS = (
    'empty',
    'numbers',
    'final_answer',
    'latex',
    'code',
    'identifiers',
    'language',
    'length_ratio',
)
# Minimum number of letters and of Chinese characters. Below both, the language is not checked,
# because names and greetings look the same in many languages.
_MIN_LETTERS, _MIN_HAN = 30, 10
# Minimum number of letters of prose that must not repeat the source; a few names may.
_MIN_REPEATED_LETTERS = 20
# Number of letters of the source above which the length is checked, and bounds of the ratio of the
# letters, as `weigh_letters` counts. Human translations stay within them: the ratios are 0.61 to
# 1.63 for MGSM (zh, ru, fr, es), 0.43 to 1.91 for the PUD treebanks (zh, fr, gl), and 0.34 (Hindi)
# to 2.88 (Russian) for the questions and paragraphs of XQuAD in eleven languages.
_MIN_MEASURED_LETTERS = 40
_MIN_RATIO, _MAX_RATIO = 1 / 3, 3.0

# Matches the last line only, because `####` elsewhere is a Markdown heading.
_FINAL_LINE = re.compile(r'^[ \t]*####[ \t]*([^\s#].*?)\s*\Z', re.MULTILINE)
_WORDS_IN_LATEX = re.compile(r'(\\(?:text\w*|mathrm|mbox)\s*)\{[^{}]*\}')
_HAN = re.compile(r'[\u3400-\u9fff]')


class TranslationFault(NamedTuple):
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
    identify: LanguageIdentifier,
    kinds: Collection[str] = KINDS,
) -> list[TranslationFault]:
    """Return the faults of a translation.

    Example:
        faults('I have 3 cups.', "J'ai 4 tasses.", 'fr', identify_language, ['numbers'])

    Args:
        source: English source text.
        translation: Translated text.
        language: Code of the target language.
        identify: Function that returns the language code of a text.
        kinds: Kinds of faults to check for. An empty translation is always a fault, and then the
            only one.
    """
    if source.strip() and not translation.strip():
        return [TranslationFault('empty', 'the translation is empty')]
    before, after = spans.split(source), spans.split(translation)
    checks_by_kind = {
        'numbers': lambda: check_numbers(before, after),
        'final_answer': lambda: check_final_answer(source, translation),
        'latex': lambda: check_latex(before, after),
        'code': lambda: check_code(before, after),
        'identifiers': lambda: check_identifiers(before, after),
        'language': lambda: (
            check_language(after.prose, language, identify)
            or check_untranslated(before.prose, after.prose)
        ),
        'length_ratio': lambda: check_length_ratio(before, after),
    }
    return [fault for kind, check in checks_by_kind.items() if kind in kinds for fault in check()]


def check_numbers(source: spans.Spans, translation: spans.Spans) -> list[TranslationFault]:
    """Compare numbers in the prose; return a fault for missing ones, and one for added ones."""
    missing, extra = quantities.number_differences(source.prose, translation.prose)
    return _differences('numbers', missing, extra)


def check_final_answer(source: str, translation: str) -> list[TranslationFault]:
    """Return faults if the translation changes the answer after '####' or a boxed answer."""
    source_line, translation_line = _FINAL_LINE.search(source), _FINAL_LINE.search(translation)
    if source_line and not translation_line:
        return [TranslationFault('final_answer', f'no last line #### {source_line[1]}')]
    if source_line and translation_line and not _same_value(source_line[1], translation_line[1]):
        return [
            TranslationFault(
                'final_answer', f'#### {translation_line[1]}, not #### {source_line[1]}'
            )
        ]
    before, after = _boxed(source), _boxed(translation)
    if len(before) != len(after):
        return [TranslationFault('final_answer', f'{len(after)} boxed answers, not {len(before)}')]
    return [
        TranslationFault('final_answer', f'{new} is boxed, not {old}')
        for old, new in zip(before, after, strict=True)
        if not _same_value(_canonical(old), _canonical(new))
    ]


def check_latex(source: spans.Spans, translation: spans.Spans) -> list[TranslationFault]:
    """Compare the formulas; return a fault for missing ones, and a fault for added ones."""
    before, after = (Counter(map(_canonical, text.latex)) for text in (source, translation))
    return _differences('latex', (before - after).elements(), (after - before).elements())


def check_code(source: spans.Spans, translation: spans.Spans) -> list[TranslationFault]:
    """Compare the fenced code blocks in order; return a fault for each difference."""
    if len(source.fences) != len(translation.fences):
        detail = f'{len(translation.fences)} fenced blocks, not {len(source.fences)}'
        return [TranslationFault('code', detail)]
    return [
        TranslationFault('code', f'fenced block {number} was changed')
        for number, blocks in enumerate(zip(source.fences, translation.fences, strict=True), 1)
        if blocks[0] != blocks[1]
    ]


def check_identifiers(source: spans.Spans, translation: spans.Spans) -> list[TranslationFault]:
    """Return a fault if the translation lacks identifiers (names from code) of the source."""
    text = '\n'.join((translation.prose, *translation.inline))
    missing = [
        name
        for name in sorted(spans.identifiers(source))
        # A Chinese character may be adjacent to a name, a Latin letter may not.
        if not re.search(rf'(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])', text)
    ]
    return _differences('identifiers', missing, ())


def check_language(
    prose: str, language: str, identify: LanguageIdentifier
) -> list[TranslationFault]:
    """Return a fault if prose is in another language; too little prose is not checked."""
    letters, han = sum(map(str.isalpha, prose)), len(_HAN.findall(prose))
    if letters < _MIN_LETTERS and han < _MIN_HAN:
        return []
    identified = identify(prose)
    return (
        []
        if identified == language
        else [TranslationFault('language', f'{identified}, not {language}')]
    )


def check_untranslated(source_prose: str, prose: str) -> list[TranslationFault]:
    """Return a fault if prose is that of the source; fewer than 20 letters are not checked."""
    same = source_prose.split() == prose.split()
    if not same or sum(map(str.isalpha, prose)) < _MIN_REPEATED_LETTERS:
        return []
    return [TranslationFault('language', 'the same text as the source')]


def check_length_ratio(source: spans.Spans, translation: spans.Spans) -> list[TranslationFault]:
    """Return a fault if a translation is much shorter or longer than the prose of the source.

    Sources with at most 40 letters of prose are not checked.
    """
    if weigh_letters(source.prose) <= _MIN_MEASURED_LETTERS:
        return []
    # Inline code counts, because the translation may mark words of the prose as code.
    before, after = (
        weigh_letters(''.join([text.prose, *text.inline])) for text in (source, translation)
    )
    if _MIN_RATIO <= after / before <= _MAX_RATIO:
        return []
    size = 'short' if after < before else 'long'
    detail = f'too {size}: {after / before:.2f} times as many letters as the source'
    return [TranslationFault('length_ratio', detail)]


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
    remainders = [re.sub(r'[\d.,\s\u00a0\u202f]', '', answer) for answer in (before, after)]
    return remainders[0] == remainders[1] and quantities.number_differences(before, after) == (
        [],
        [],
    )


def _canonical(formula: str) -> str:
    r"""Return a formula without white space and without the words in `\text{…}`."""
    return re.sub(r'\s+', '', _WORDS_IN_LATEX.sub(r'\1{}', formula))


def _differences(kind: str, missing: Iterable[str], extra: Iterable[str]) -> list[TranslationFault]:
    return [
        TranslationFault(kind, f'{what}: {", ".join(values)}')
        for what, values in (('missing', list(missing)), ('added', list(extra)))
        if values
    ]

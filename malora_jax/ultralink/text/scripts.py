"""Scripts of a text: Latin, Cyrillic, or East Asian letters (Chinese, Japanese and Korean)."""

import re

_LATIN, _CYRILLIC = re.compile('[A-Za-zÀ-ɏ]'), re.compile('[Ѐ-ӿ]')
_EAST_ASIAN = re.compile('[\u3040-\u30ff㐀-鿿가-힣\U00020000-\U0003ffff]')
_EAST_ASIAN_PUNCTUATION = re.compile('[、。「」《》！，：；？]')
_LATIN_WORD, _CYRILLIC_WORD = re.compile(r'\b[A-Za-zÀ-ɏ]+\b'), re.compile(r'\b[Ѐ-ӿ]+\b')
# Letters of other scripts that say as much as an East Asian letter, about.
_LETTERS_PER_EAST_ASIAN = 2.5
# Weights of a letter or a punctuation mark in the choice of the main script, where a Latin letter
# has 1: names in Latin letters are common in texts in other scripts, but the opposite is rare.
_PER_EAST_ASIAN, _PER_PUNCTUATION_MARK, _PER_CYRILLIC = 4, 8, 2


def weigh_letters(text: str) -> float:
    """Return the number of letters in a text, where an East Asian letter counts 2.5 times."""
    more = (_LETTERS_PER_EAST_ASIAN - 1) * len(_EAST_ASIAN.findall(text))
    return sum(map(str.isalpha, text)) + more


def keep_main_script(text: str) -> tuple[str, bool]:
    """Return a text without words in minor scripts, and whether its main script is East Asian."""
    latin, cyrillic = len(_LATIN.findall(text)), _PER_CYRILLIC * len(_CYRILLIC.findall(text))
    east_asian = _PER_EAST_ASIAN * len(_EAST_ASIAN.findall(text))
    if east_asian:
        marks = _PER_PUNCTUATION_MARK * len(_EAST_ASIAN_PUNCTUATION.findall(text))
        if east_asian + marks > max(latin, cyrillic):
            return _CYRILLIC.sub(' ', _LATIN.sub(' ', text)), True
        text = _EAST_ASIAN.sub(' ', text)
    if latin and cyrillic:
        # Whole words, because some writers use the Latin i in Belarusian words.
        text = (_LATIN_WORD if cyrillic > latin else _CYRILLIC_WORD).sub(' ', text)
    return text, False

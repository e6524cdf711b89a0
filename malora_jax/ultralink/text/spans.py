r"""Parser that splits a text into code and LaTeX, which a translation must keep, and prose.

Code is in fences of three or more backticks or tildes (CommonMark, section 4.5), or between single
or double backticks. LaTeX is `$$…$$`, `\[…\]`, `\(…\)`, `\begin{…}…\end{…}` or `$…$`. Prices must
not match `$…$`. So the formula must not begin or end with a space, and no digit may follow the
second dollar sign (the rule of Pandoc's `tex_math_dollars`).
"""

import re
from typing import NamedTuple

_FENCE = re.compile(
    r'^[ \t]*(?P<marks>`{3,}|~{3,})[^\n`]*\n(?:(?:.*?\n)?[ \t]*(?P=marks)[`~]*[ \t]*$|.*\Z)',
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r'(?<!`)(?P<marks>`{1,2})(?!`)(?P<code>[^\n]+?)(?<!`)(?P=marks)(?!`)')
_LATEX = re.compile(
    r'\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{(?P<name>\w+\*?)\}.+?\\end\{(?P=name)\}'
    r'|(?<![\\$\w])\$(?=[^\s$])[^$\n]*?(?<=[^\s$\\])\$(?![\d$])',
    re.DOTALL,
)
# Names that cannot be natural-language words: with an underscore, with a capital letter after a
# lowercase one, or followed by `()`.
_NAME = re.compile(
    r'(?<![\w.])(?:[A-Za-z_]\w*\.)*(?:[A-Za-z]\w*_\w+|_\w+|[a-z]+[A-Z]\w*|[A-Za-z_]\w*(?=\(\)))',
    re.ASCII,
)


class Spans(NamedTuple):
    """The code, LaTeX and prose of a text.

    Attributes:
        fences: Fenced code blocks, including the fences.
        inline: Inline code, without the backticks.
        latex: LaTeX formulas, including the delimiters.
        prose: The rest of the text, with a space in place of each span above.
    """

    fences: list[str]
    inline: list[str]
    latex: list[str]
    prose: str


def split(text: str) -> Spans:
    """Split a text into spans; backticks and dollars inside code are part of the code."""
    fences = [match[0] for match in _FENCE.finditer(text)]
    text = _FENCE.sub(' ', text)
    inline = [match['code'] for match in _INLINE.finditer(text)]
    text = _INLINE.sub(' ', text)
    latex = [match[0] for match in _LATEX.finditer(text)]
    return Spans(fences, inline, latex, _LATEX.sub(' ', text))


def identifiers(spans: Spans) -> set[str]:
    """Return the identifiers in a text: inline code, and names in the prose that look like code."""
    return set(spans.inline) | {match[0] for match in _NAME.finditer(spans.prose)}

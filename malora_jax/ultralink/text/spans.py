r"""The parts of a text that no translator touches, and the prose between them.

Code is what stands in fences of three or more backticks or tildes (CommonMark, section 4.5), or
between one or two backticks. LaTeX is `$$…$$`, `\[…\]`, `\(…\)`, `\begin{…}…\end{…}`, and `$…$`
where the dollars touch what is between them and no digit follows, so that prices are none (the rule
of Pandoc's `tex_math_dollars`).
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
# Names that are no words of any language: with an underscore, a capital inside, or called.
_NAME = re.compile(
    r'(?<![\w.])(?:[A-Za-z_]\w*\.)*(?:[A-Za-z]\w*_\w+|_\w+|[a-z]+[A-Z]\w*|[A-Za-z_]\w*(?=\(\)))',
    re.ASCII,
)


class Spans(NamedTuple):
    """What is in a text.

    Attributes:
        fences: fenced code, each with its fences.
        inline: what stands between backticks.
        latex: formulas, each with its marks.
        prose: the rest, a space in the place of each of the above.
    """

    fences: list[str]
    inline: list[str]
    latex: list[str]
    prose: str


def split(text: str) -> Spans:
    """Takes a text apart; what is in a fence is neither inline code nor LaTeX."""
    fences = [match[0] for match in _FENCE.finditer(text)]
    text = _FENCE.sub(' ', text)
    inline = [match['code'] for match in _INLINE.finditer(text)]
    text = _INLINE.sub(' ', text)
    latex = [match[0] for match in _LATEX.finditer(text)]
    return Spans(fences, inline, latex, _LATEX.sub(' ', text))


def identifiers(spans: Spans) -> set[str]:
    """The names of code that the prose speaks of."""
    return set(spans.inline) | {match[0] for match in _NAME.finditer(spans.prose)}

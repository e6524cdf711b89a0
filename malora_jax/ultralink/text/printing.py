"""Texts of documents and models, for printing to a terminal."""

import textwrap
import unicodedata


def printable(text: str) -> str:
    """Return a text without control characters, with which a reply could change the terminal."""
    return ''.join(
        '\ufffd' if unicodedata.category(each) == 'Cc' and each not in '\n\t' else each
        for each in text
    )


def indented(text: str) -> str:
    """Return a text with a vertical line before each of its lines."""
    return textwrap.indent(text, '    | ', lambda line: True)

"""Parser of MGSM: 250 questions of GSM8K in eleven languages, with eight worked examples each."""

import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item
from malora_jax.data.file_rows import Row, file_kind, read_rows


class Headings(NamedTuple):
    """Headings of a question and its answer in one language."""

    question: str
    answer: str


# Headings in the worked examples of the dataset.
HEADINGS = {
    'bn': Headings('প্রশ্ন:', 'ধাপে ধাপে উত্তর:'),
    'de': Headings('Frage:', 'Schritt-für-Schritt-Antwort:'),
    'en': Headings('Question:', 'Step-by-Step Answer:'),
    'es': Headings('Pregunta:', 'Respuesta paso a paso:'),
    'fr': Headings('Question :', 'Réponse étape par étape :'),
    'ja': Headings('問題：', 'ステップごとの答え：'),
    'ru': Headings('Задача:', 'Пошаговое решение:'),
    'sw': Headings('Swali:', 'Jibu la Hatua kwa Hatua:'),
    'te': Headings('ప్రశ్న:', 'దశలవారీగా సమాధానం:'),
    'th': Headings('โจทย์:', 'คำตอบทีละขั้นตอน:'),
    'zh': Headings('问题：', '逐步解答：'),
}


def parse_mgsm(row: Row) -> Item:
    """Parse `question` and `answer_number`; worked examples also have `answer`, their solution.

    In worked examples, question and answer begin with a heading and a colon. The heading is removed
    here, because the prompt forms add it.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    question, number = fields.text(row, 'question'), fields.whole_number(row, 'answer_number')
    if fields.optional_text(row, 'answer'):
        return Item(_after_colon(row, 'question'), answers=(_after_colon(row, 'answer'),))
    return Item(question, answers=(str(number),))


def read_mgsm(path: pathlib.Path) -> Iterator[Row]:
    """Return the rows of a local file of MGSM.

    A .tsv file is an original file, which has no header line. `read_rows` reads all other formats.

    Raises:
        UserError: The file cannot be read.
    """
    original = file_kind(path) == '.tsv'
    return read_rows(path, ('question', 'answer_number') if original else ())


def _after_colon(row: Row, name: str) -> str:
    # Japanese and Chinese use a wide colon.
    match = re.match(r'[^:：]{1,40}[:：]\s*(.+)', fields.text(row, name), re.DOTALL)
    if not match:
        raise BrokenRowError(
            f'{row.location}: field {name!r} must begin with a word and a colon, such as '
            "'Question:'."
        )
    return match[1]

"""Parser of Financial PhraseBank: sentences of financial news and their sentiment."""

import io
import pathlib
import zipfile
from collections.abc import Iterator

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item, choice_item
from malora_jax.data.file_rows import Row, check_file, file_kind, read_rows
from malora_jax.errors import UserError

# Sentiments in the hub's order, which defines their indices.
SENTIMENTS = ('negative', 'neutral', 'positive')
# File with the 3,453 sentences on which at least three in four annotators agree.
_MEMBER = 'Sentences_75Agree.txt'


def parse_phrasebank(row: Row) -> Item:
    """Parse `sentence` and `label`, which is a sentiment or, as on the hub, its index.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    label = row.fields.get('label')
    named = isinstance(label, str) and label.isalpha()
    if named and label not in SENTIMENTS:
        raise BrokenRowError(
            f"{row.location}: field 'label' is {label!r}; it must be {', '.join(SENTIMENTS)} or "
            'the index of one.'
        )
    index = SENTIMENTS.index(label) if named else fields.index(row, 'label', len(SENTIMENTS))
    return choice_item(row.location, fields.text(row, 'sentence'), SENTIMENTS, index)


def read_phrasebank(path: pathlib.Path) -> Iterator[Row]:
    """Return the rows of a local file of Financial PhraseBank.

    The file may be the released .zip file or a .txt file from it. Each line of a .txt file is
    'sentence@label'; it is in Latin-1, as released, or in UTF-8. `read_rows` reads all other
    formats.

    Raises:
        UserError: The file cannot be read.
    """
    check_file(path)
    kind = file_kind(path)
    if kind == '.zip':
        return _lines(path, _member(path))
    return _lines(path, path.read_bytes()) if kind == '.txt' else read_rows(path)


def _member(path: pathlib.Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f'/{_MEMBER}')]
            if len(names) != 1:
                raise UserError(f'{path} must hold one file {_MEMBER}, not {len(names)}.')
            return archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise UserError(f'{path} is not a complete zip file ({error}).') from error


def _lines(path: pathlib.Path, content: bytes) -> Iterator[Row]:
    try:
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = content.decode('latin-1')
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            # The sentence may contain @ too, so the last one separates the label.
            sentence, _, label = line.strip().rpartition('@')
            yield Row(f'{path} line {number}', {'sentence': sentence, 'label': label})

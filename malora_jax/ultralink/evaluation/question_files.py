"""Reader of questions, with or without answers: text files, AlpacaEval's format, and JSON Lines.

OMGEval publishes its questions as text files with one question per line, and the answers of models
in AlpacaEval's format: an array of objects with `instruction`, `output` and `generator`
(github.com/blcuicall/OMGEval at commit f4dfb6d, data/ and model_outputs/).
"""

import collections
import pathlib
from collections.abc import Iterator, Sequence

from malora_jax.data.compressed_files import open_decompressed
from malora_jax.data.file_rows import Row, check_file, file_kind, is_utf_8, read_rows
from malora_jax.errors import UserError
from malora_jax.ultralink import shards


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield a row with `id`, `question` and, if the input has it, `answer` for each question.

    A row without an id gets FILE-NUMBER, such as OMGEval_French-17: the name of the file without
    its suffix, and the number of the question, from 1. `occurrence` is the number of earlier rows
    with the same question, because some files of OMGEval repeat a question.

    Args:
        paths: Text files (.txt) with one question per line, of which blank lines are skipped; JSON
            files with an array, or JSON Lines, of objects with `question` and `answer`, or
            `instruction` and `output`; output directories of stages.

    Raises:
        UserError: A path is missing or broken, or two rows have the same id.
    """
    return _count_occurrences(
        shards.ensure_unique_ids(row for path in paths for row in _read_path(path))
    )


def question_key(row: Row) -> tuple[str, int]:
    """Return the question without surrounding white space, and its occurrence.

    The files of OMGEval differ in the white space around some questions.
    """
    return shards.text_field(row, 'question').strip(), row.fields['occurrence']


def _read_path(path: pathlib.Path) -> Iterator[Row]:
    if path.is_dir():
        yield from shards.read([path])
        return
    rows = _READERS.get(file_kind(path), shards.read_json_rows)(path)
    # With the two suffixes of a compressed file, such as .json.gz.
    name = path.name.partition('.')[0]
    for number, row in enumerate(rows, start=1):
        yield Row(row.location, {'id': f'{name}-{number}'} | _common_fields(row))


def _common_fields(row: Row) -> dict[str, str]:
    """Return the fields of a row under the names that this project uses."""
    if 'instruction' not in row.fields:
        return dict(row.fields)
    renamed = {'instruction': 'question', 'output': 'answer'}
    return {new: row.fields[old] for old, new in renamed.items() if old in row.fields}


def _read_lines(path: pathlib.Path) -> Iterator[Row]:
    """Yield the lines of a text file that are not blank.

    Raises:
        UserError: The file is missing, or a line is not UTF-8.
    """
    check_file(path)
    with open_decompressed(path) as file:
        text = file.read().decode('utf-8-sig', 'surrogateescape')
    for number, line in enumerate(text.split('\n'), start=1):
        if not is_utf_8(line):
            raise UserError(f'{path}:{number} is not UTF-8: save the file as UTF-8.')
        if line.strip():
            yield Row(f'{path}:{number}', {'question': line.strip()})


def _count_occurrences(rows: Iterator[Row]) -> Iterator[Row]:
    seen: collections.Counter[str] = collections.Counter()
    for row in rows:
        question = str(row.fields.get('question', '')).strip()
        yield Row(row.location, {**row.fields, 'occurrence': seen[question]})
        seen[question] += 1


_READERS = {'.txt': _read_lines, '.json': read_rows}

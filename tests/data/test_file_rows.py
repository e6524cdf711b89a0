import csv
import gzip
import json
import os
import string
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malora_jax.data.file_rows import is_utf_8, read_rows
from malora_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Function that writes a file and returns its path."""

    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(path, *columns: str) -> list[tuple[str, dict]]:
    """Return each row's place, without the directory, and its fields."""
    found = read_rows(path, columns)
    return [(row.location.removeprefix(f'{path.parent}/'), row.fields) for row in found]


def mistake(path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path, columns))
    assert '\n' not in str(caught.value)
    return str(caught.value).replace(f'{path.parent}/', '')


def test_json_lines_numbered_as_an_editor_does(write):
    path = write('a.jsonl', '\ufeff{"q": "Why?\\n", "n": 1.50}\r\n\n{"q": "é\u2028", "b": [true]}')
    assert rows(path) == [
        ('a.jsonl line 1', {'q': 'Why?\n', 'n': '1.50'}),
        ('a.jsonl line 3', {'q': 'é\u2028', 'b': [True]}),
    ]


def test_numbers_of_json_are_as_they_were_written(write):
    long = '1' + '0' * 5_000
    path = write('a.jsonl', f'{{"a": 42, "b": -0.10, "c": 1e400, "d": NaN, "e": {long}}}')
    assert rows(path)[0][1] == {'a': '42', 'b': '-0.10', 'c': '1e400', 'd': None, 'e': long}


def test_a_table_numbered_by_the_first_line_of_each_row(write):
    path = write('a.csv', '\ufeffq, a\r\n"one, ""two""\nthree",4\r\n\r\nfive,"six\r\nseven"\r\n8,')
    assert rows(path) == [
        ('a.csv line 2', {'q': 'one, "two"\nthree', 'a': '4'}),
        ('a.csv line 5', {'q': 'five', 'a': 'six\r\nseven'}),
        ('a.csv line 7', {'q': '8', 'a': ''}),
    ]


def test_a_cell_of_any_length(write):
    long = 'x' * 200_000
    assert rows(write('a.csv', f'q,a\n{long},4\n')) == [('a.csv line 2', {'q': long, 'a': '4'})]


def test_tabs(write):
    path = write('a.TSV', 'q\ta\nit, "is"\t4\n')
    assert rows(path) == [('a.TSV line 2', {'q': 'it, "is"', 'a': '4'})]


def test_a_table_without_header(write):
    path = write('a.tsv', '\ufeffone "x"\t4\n\ntwo\t5\n')
    assert rows(path, 'q', 'a') == [
        ('a.tsv line 1', {'q': 'one "x"', 'a': '4'}),
        ('a.tsv line 3', {'q': 'two', 'a': '5'}),
    ]
    assert mistake(path, 'q', 'a', 'b') == (
        'a.tsv line 1: the number of cells is 2, but the expected number is 3; put cells that '
        "contain '\\t' or a line break in double quotes."
    )


def test_an_array_of_objects(write):
    path = write(
        'a.JSON', '\ufeff\n[\n {"q": "one\u2028", "n": 1.50},\n {"b": [true], "c": NaN}]\n'
    )
    assert rows(path) == [
        ('a.JSON row 1', {'q': 'one\u2028', 'n': '1.50'}),
        ('a.JSON row 2', {'b': [True], 'c': None}),
    ]


def test_a_json_file_may_have_an_object_a_line(write):
    path = write('a.json', '\n{"q": "one"}\n{"q": 2}')
    assert rows(path) == [('a.json line 2', {'q': 'one'}), ('a.json line 3', {'q': '2'})]


@pytest.mark.parametrize(
    'name, content',
    [
        ('a.jsonl.gz', '{"q": "é"}'),
        ('a.json.gz', '[{"q": "é"}]'),
        ('a.csv.gz', 'q\né\n'),
        ('a.TSV.GZ', 'q\né\n'),
    ],
)
def test_compressed_files(write, name, content):
    path = write(name, gzip.compress(content.encode()))
    assert [fields for _, fields in rows(path)] == [{'q': 'é'}]
    whole = path.read_bytes()
    for broken in (whole[:-9], whole[:-4] + bytes(4), whole[:12] + b'\xff' + whole[13:], b'{}'):
        assert mistake(write(name, broken)).startswith(f'{name} is not a complete gzip file (')


def test_parquet(tmp_path):
    path = tmp_path / 'a.parquet'
    pyarrow.parquet.write_table(pyarrow.table({'q': ['one', None], 'n': [1, 2]}), path)
    assert rows(path) == [
        ('a.parquet row 1', {'q': 'one', 'n': 1}),
        ('a.parquet row 2', {'q': None, 'n': 2}),
    ]


def test_rows_are_read_group_by_group(tmp_path):
    path = tmp_path / 'a.parquet'
    table = pyarrow.table({'n': range(1_000)})
    pyarrow.parquet.write_table(table, path, row_group_size=64)
    assert rows(path) == [(f'a.parquet row {n + 1}', {'n': n}) for n in range(1_000)]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.csv', 'a.tsv'])
@pytest.mark.parametrize('content', ['', '\n\n', '\ufeff'])
def test_an_empty_file_has_no_rows(write, name, content):
    assert rows(write(name, content)) == []


def test_a_header_alone_has_no_rows(write):
    assert rows(write('a.csv', 'q,a\n')) == []


CELL = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=12)
NAMES = st.lists(st.text(string.ascii_letters, min_size=1), min_size=2, max_size=4, unique=True)
TMP = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@TMP
@given(st.data(), NAMES, st.sampled_from(['csv', 'tsv']))
def test_what_the_csv_module_writes_is_read_back(tmp_path, data, names, suffix):
    table = data.draw(st.lists(st.fixed_dictionaries({name: CELL for name in names}), max_size=5))
    path = tmp_path / f'a.{suffix}'
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, names, delimiter=',' if suffix == 'csv' else '\t')
        writer.writeheader()
        writer.writerows(table)
    assert [fields for _, fields in rows(path)] == table


@TMP
@given(st.lists(st.dictionaries(CELL, CELL, max_size=4), max_size=5), st.booleans())
def test_what_the_json_module_writes_is_read_back(tmp_path, objects, ascii_only):
    path = tmp_path / 'a.jsonl'
    lines = (json.dumps(fields, ensure_ascii=ascii_only) for fields in objects)
    path.write_text('\n'.join(lines), 'utf-8')
    assert [fields for _, fields in rows(path)] == objects


def test_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'd.csv').mkdir()
    assert mistake(tmp_path / 'a.csv') == (
        f'There is no data file a.csv (looked for in {tmp_path}).'
    )
    assert mistake(tmp_path / 'd.csv') == 'd.csv is a directory; it must be a data file.'


@pytest.mark.parametrize(
    'name, content, message',
    [
        (
            'a.jsonl',
            '{"q": 1}\n{"q" 1}\n',
            "a.jsonl line 2 is not valid JSON (Expecting ':' delimiter at column 6): each line "
            'must be one JSON object.',
        ),
        (
            'a.jsonl',
            '{"q": "on\ne"}',
            'a.jsonl line 1 is not valid JSON (Unterminated string starting at at column 7): each '
            'line must be one JSON object.',
        ),
        ('a.jsonl', '\n[1]', 'a.jsonl line 2 is not a JSON object, such as {"question": "…"}.'),
        (
            'a.jsonl',
            '{"q": ' + '[' * 10**6,
            'a.jsonl line 1 is nested too deeply: each line must be one JSON object.',
        ),
        (
            'a.csv',
            'q'.encode('utf-16'),
            'a.csv line 1 is not UTF-8: save the file as UTF-8.',
        ),
        (
            'a.csv',
            'q,a\n1,2\n\n3,4,5\n',
            'a.csv line 4: the number of cells is 3, but the header has 2; put cells that contain '
            "',' or a line break in double quotes.",
        ),
        (
            'a.tsv',
            'q\ta\n1\n',
            'a.tsv line 2: the number of cells is 1, but the header has 2; put cells that contain '
            "'\\t' or a line break in double quotes.",
        ),
        ('a.csv', 'q,a\n1,"2\n3,4\n', 'a.csv line 2 is not valid CSV (unexpected end of data).'),
        ('a.csv', 'q,a\n"1"2,3\n', "a.csv line 2 is not valid CSV (',' expected after '\"')."),
        ('a.csv', 'q,a, q\n', "a.csv has more than one column 'q'."),
        (
            'a.json',
            '[{"q": 1},\n{"q" 2}]',
            "a.json line 2 is not valid JSON (Expecting ':' delimiter at column 6).",
        ),
        ('a.json', '[{}, [1]]', 'a.json row 2 is not a JSON object, such as {"question": "…"}.'),
        ('a.json', '[' * 10**6, 'a.json is nested too deeply.'),
        (
            'a.csv.gz',
            gzip.compress(b'q,a\n1,"2\n'),
            'a.csv.gz line 2 is not valid CSV (unexpected end of data).',
        ),
        (
            'a.txt',
            'q',
            'a.txt has an unsupported type: the name must end in .csv, .json, .jsonl, .parquet, '
            '.tsv.',
        ),
        (
            'a.parquet.gz',
            'q',
            'a.parquet.gz has an unsupported type: the name must end in .csv, .json, .jsonl, '
            '.parquet, .tsv.',
        ),
    ],
    ids=[
        *('colon', 'line_break', 'array', 'deep', 'utf16', 'cells', 'few_cells'),
        *('quote', 'after_quote', 'twins', 'array_colon', 'array_array', 'array_deep'),
        *('gzip_quote', 'unknown', 'gzip_parquet'),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, name, content, message):
    assert mistake(write(name, content)) == message


def test_broken_parquet(write):
    for content in (b'', b'PAR1', b'q,a\n1,2\n' * 10):
        message = mistake(write('a.parquet', content))
        assert message.startswith('a.parquet is not a complete Parquet file (')


def test_parquet_damaged_in_its_data(tmp_path):
    path = tmp_path / 'a.parquet'
    pyarrow.parquet.write_table(pyarrow.table({'q': [str(n) for n in range(9_999)]}), path)
    content = bytearray(path.read_bytes())
    content[200:5_000] = bytes(4_800)
    path.write_bytes(content)
    assert mistake(path).startswith('a.parquet is not a complete Parquet file (')


def test_text_of_parquet_that_is_not_utf8(tmp_path):
    path = tmp_path / 'a.parquet'
    offsets, letters = np.array([0, 1, 3], np.int32), b'a\xff\xfe'
    column = pyarrow.StringArray.from_buffers(2, *map(pyarrow.py_buffer, (offsets, letters)))
    pyarrow.parquet.write_table(pyarrow.table({'q': column}), path)
    assert mistake(path) == 'a.parquet row 1 or a later one is not UTF-8.'


def test_twin_columns_of_parquet(tmp_path):
    path = tmp_path / 'a.parquet'
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([[1], [2]], names=['q', 'q']), path)
    assert mistake(path) == "a.parquet has more than one column 'q'."


def test_only_the_row_that_is_not_utf_8_is_at_fault(write):
    found = rows(write('a.jsonl', b'{"q": "\xc3\xa9"}\n{"q": "\xe9"}\n{"q": "e"}'))
    assert [place for place, _ in found] == [f'a.jsonl line {n}' for n in (1, 2, 3)]
    assert [is_utf_8(fields['q']) for _, fields in found] == [True, False, True]
    ((_, cells),) = rows(write('a.csv', b'q,a\n\xe9,b\n'))
    assert {name: is_utf_8(cell) for name, cell in cells.items()} == {'q': False, 'a': True}


def test_a_table_of_very_many_columns_is_read_at_once(tmp_path):
    path = tmp_path / 'wide.csv'
    line = ','.join(f'c{number}' for number in range(10**5))
    path.write_text(f'{line}\n{line}\n')
    began = time.process_time()
    [row] = read_rows(path)
    assert len(row.fields) == 10**5 and time.process_time() - began < 5


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'a.jsonl')
    with pytest.raises(UserError, match='is a pipe, socket or device; it must be a regular file'):
        read_rows(tmp_path / 'a.jsonl')

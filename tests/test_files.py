"""Files are never left half-written, and broken files are reported in one line."""

import json
import os
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.schema import PositiveInt


def test_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'results.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(OSError, match='full'), files.atomic_write(path) as temporary:
        temporary.write_text('{"a":')
        raise OSError('disk is full')
    assert json.loads(path.read_text()) == {'a': 1}
    assert [file.name for file in tmp_path.iterdir()] == ['results.json']


@settings(deadline=None)
@given(st.lists(st.text() | st.dictionaries(st.text(), st.text())))
@example(['größer\nzwei\r\n', {'数学': '\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00'}])
def test_json_lines_round_trip_with_any_text(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp('rows') / 'rows.jsonl'
    files.write_json_lines(path, rows)
    assert files.read_json_lines(path) == rows
    # One line feed per row, and non-ASCII characters unescaped.
    content = path.read_bytes()
    assert content.count(b'\n') == len(rows)
    assert not any('数' in str(row) for row in rows) or '数'.encode() in content


@pytest.mark.parametrize('cut', range(1, 11))
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    """The cut may be at any byte, within a character too, or drop only the line feed."""
    path = tmp_path / 'rows.jsonl'
    files.write_json_lines(path, ['one', 'two'])
    whole = path.read_bytes()
    path.write_bytes(whole + '"größer"\n'.encode()[:-cut])
    assert files.read_json_lines(path) == ['one', 'two']


def test_another_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('1\n{"a\n3\n')
    with pytest.raises(UserError) as caught:
        files.read_json_lines(path)
    assert str(caught.value) == (
        f'{path}:2 is not valid JSON (Unterminated string starting at at column 2): restore it '
        'from a copy.'
    )


def broken(path, content, kind=Any, **more):
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path, kind, **more)
    told = str(caught.value)
    assert told.startswith(str(path)) and '\n' not in told
    return told.removeprefix(str(path))


@pytest.mark.parametrize(
    'content, expected',
    [
        (b'{"a": ', ' is not valid JSON (Expecting value at column 7): restore it from a copy.'),
        (b'{"a": 1\n"b"}', " line 2 is not valid JSON (Expecting ',' delimiter at column 1): "),
        (b'[' * 10**5, ' is nested too deeply: restore it from a copy.'),
        (b'[' * 500 + b']' * 500, ' is nested too deeply: restore it from a copy.'),
        (b'"\xff"', ' is not UTF-8: restore it from a copy.'),
        (b'"\\ud800"', ' contains an unpaired surrogate, which is not valid Unicode text: '),
        (b'9' * 5000, ' has a number with too many digits: restore it from a copy.'),
        ('"\ufeff'.encode('utf-16'), ' is not UTF-8: '),
    ],
)
def test_what_is_no_json_is_told_in_one_line(tmp_path, content, expected):
    assert broken(tmp_path / 'a.json', content).startswith(expected)


def test_text_with_brackets_and_whole_characters_is_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'a': '[{' * 500, 'b': '\U0001f600', 'c': [[1]] * 200}))
    assert files.read_json(path)['b'] == '\U0001f600'


class Part(TypedDict):
    count: PositiveInt
    names: NotRequired[list[str]]


@pytest.mark.parametrize(
    'content, expected',
    [
        ('[]', ': the content is []; it must be an object with fields: '),
        ('{}', ': parts is missing: '),
        ('{"parts": {"x": {}}}', ': parts.x.count is missing: '),
        ('{"parts": {"x": {"count": 0}}}', ': parts.x.count is 0; it must be a positive whole '),
        ('{"parts": {"x": {"count": true}}}', ': parts.x.count is True; it must be a positive '),
        (
            '{"parts": {"x": {"count": 1, "names": ["a", 2]}}}',
            ': parts.x.names[1] is 2; it must be ',
        ),
        ('{"parts": {}, "loss": NaN}', ': loss is nan; it must be a finite number or null: '),
        ('{"parts": {}, "loss": 1' + '0' * 400 + '}', ': loss is a number of '),
        ('{"parts": {"a\\nb": 1}}', ': parts.a\\nb is 1; it must be an object with fields: '),
    ],
)
def test_fields_are_checked(tmp_path, content, expected):
    class Whole(TypedDict):
        parts: dict[str, Part]
        loss: NotRequired[float | None]

    assert broken(tmp_path / 'a.json', content.encode(), Whole).startswith(expected)


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink('/dev/zero', path)])
def test_what_is_no_regular_file_is_not_opened(tmp_path, make):
    make(tmp_path / 'a.json')
    for read in (files.read_json, files.read_json_lines):
        with pytest.raises(UserError, match='; it must be a regular file'):
            read(tmp_path / 'a.json')


def test_what_is_refused_leaves_no_lock_and_no_directory(tmp_path):
    def refuse(directory, *written):
        with pytest.raises(UserError), files.lock_directory(directory, 'busy'):
            for name in written:
                (directory / name).touch()
            raise UserError('no')

    refuse(tmp_path / 'a' / 'b')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'there').mkdir()
    refuse(tmp_path / 'there')
    assert not list((tmp_path / 'there').iterdir())
    refuse(tmp_path / 'used', 'rows')
    assert {path.name for path in (tmp_path / 'used').iterdir()} == {'.lock', 'rows'}
    with files.lock_directory(tmp_path / 'there', 'busy'):
        with (
            pytest.raises(UserError, match='busy'),
            files.lock_directory(tmp_path / 'there', 'busy'),
        ):
            pass
        assert (tmp_path / 'there' / '.lock').exists()

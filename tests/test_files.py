"""Files are never left half-written."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from malora_jax import files
from malora_jax.errors import UserError


def test_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'results.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(OSError, match='full'), files.replacing(path) as temporary:
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
    # One line feed a row, and characters of all languages as they are.
    content = path.read_bytes()
    assert content.count(b'\n') == len(rows)
    assert not any('数' in str(row) for row in rows) or '数'.encode() in content


@pytest.mark.parametrize('cut', range(1, 11))
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    """At any byte, within a character too, and if only the line feed is missing."""
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

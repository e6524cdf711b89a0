"""Files are never left half-written."""

import json

import pytest

from malora_jax import files


def test_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'results.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(OSError, match='full'), files.replacing(path) as temporary:
        temporary.write_text('{"a":')
        raise OSError('disk is full')
    assert json.loads(path.read_text()) == {'a': 1}
    assert [file.name for file in tmp_path.iterdir()] == ['results.json']


def test_json_lines_round_trip_with_any_text(tmp_path):
    rows = [{'text': 'größer\nzwei'}, {'text': '数学'}]
    files.write_json_lines(tmp_path / 'rows.jsonl', rows)
    lines = (tmp_path / 'rows.jsonl').read_text('utf-8').splitlines()
    assert [json.loads(line) for line in lines] == rows

"""Rows of public datasets: each format is recognized, repaired and counted.

The forms of the rows are those of the datasets; their texts are made up.
"""

import asyncio
import bz2
import json

import pyarrow
import pytest
from pyarrow import parquet

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import public_datasets, release_import, source_formats
from malora_jax.ultralink.release_import import ImportConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import contents, read_rows, write_rows

QUESTION = 'How many minutes are there in three hours, and how many in half a day?'
ANSWER = 'There are 180 minutes in three hours, and 720 minutes in half a day.'
PAIR = [QUESTION, ANSWER]
TEXT_PART = {'type': 'text', 'text': QUESTION}
FORMATS = {
    'ShareGPT': (
        {'conversations': [{'from': 'human', 'value': QUESTION}, {'from': 'gpt', 'value': ANSWER}]},
        'chat_agnostic',
    ),
    'OpenChat': (
        {
            'items': [
                {'from': 'human', 'value': QUESTION},
                {'from': 'gpt', 'value': ANSWER, 'weight': 1.0},
            ],
            'system': '',
        },
        'chat_agnostic',
    ),
    'messages': (
        {
            'messages': [
                {'role': 'user', 'content': QUESTION},
                {'role': 'assistant', 'content': ANSWER},
            ]
        },
        'chat_agnostic',
    ),
    'UltraChat': ({'id': '0', 'data': PAIR}, 'chat_agnostic'),
    'MetaMathQA': (
        {'query': QUESTION, 'response': ANSWER, 'type': 'GSM_SV', 'original_question': QUESTION},
        'math',
    ),
    'Magicoder OSS-Instruct': (
        {'lang': 'python', 'index': 7, 'problem': QUESTION, 'solution': ANSWER},
        'code',
    ),
    'Magicoder Evol-Instruct': ({'instruction': QUESTION, 'response': ANSWER}, 'code'),
}


def chat(*turns):
    """Return a ShareGPT row; the first letter of a turn is its speaker."""
    names = {'h': 'human', 'g': 'gpt', 's': 'system'}
    return {'conversations': [{'from': names[turn[0]], 'value': turn[2:]} for turn in turns]}


def read(fields):
    return source_formats.read(Row('f.jsonl:1', fields))


def import_(path, source, **options):
    config = ImportConfig(input=[source], **options)
    files = release_import.find_inputs(config)
    manifest = asyncio.run(STAGES['import'].run(StageRun(config, files, path)))
    return read_rows(path), manifest.total


@pytest.mark.parametrize('name', FORMATS)
def test_each_format_is_recognized_and_has_its_subset(name):
    fields, subset = FORMATS[name]
    found = read(fields)
    assert (found.format, found.subset, list(found.data)) == (name, subset, PAIR)
    assert not found.repairs and not found.reason


@pytest.mark.parametrize(
    'turns, data, repairs',
    [
        ('g:A h:Q g:B', 'Q B', ['answers before the first question removed']),
        ('h:Q g:A h:R', 'Q A', ['last question without an answer removed']),
        ('h:Q h:R g:A', 'Q\n\nR A', ['consecutive messages of a speaker joined']),
        ('h:Q g:A g:B', 'Q A\n\nB', ['consecutive messages of a speaker joined']),
        ('s:S h:Q g:A', 'S\n\nQ A', ['system message put before the first question']),
        ('s: h:Q g:A', 'Q A', []),
        ('h:Q g:A h: g:B', 'Q A', ['cut before an empty message']),
        ('g: h:Q g:A', 'Q A', ['answers before the first question removed']),
        (
            'g:A h:Q g:B h:R g: g:C',
            'Q B',
            [
                'answers before the first question removed',
                'cut before an empty message',
                'last question without an answer removed',
            ],
        ),
    ],
)
def test_repairs(turns, data, repairs):
    found = read(chat(*turns.split(' ')))
    assert list(found.data) == data.split(' ')
    assert list(found.repairs) == repairs


@pytest.mark.parametrize(
    'fields, reason, detail',
    [
        (chat(), source_formats.NO_TURN, 'no messages'),
        (chat('g:A', 'h:Q'), source_formats.NO_TURN, 'speakers: gpt, human'),
        (chat('h: ', 'g:A'), source_formats.NO_TURN, 'speakers: human, gpt'),
        (
            {'messages': [{'role': 'tool', 'content': 'x'}]},
            source_formats.SPEAKER,
            "'tool'",
        ),
        ({'messages': [{'role': 'user', 'content': [1]}]}, source_formats.MALFORMED, 'a message'),
        ({'messages': [{'role': 'user'}]}, source_formats.MALFORMED, "'messages' must be a list"),
        ({'data': 'text'}, source_formats.MALFORMED, "'data' must be a list"),
        ({'query': 'Q', 'response': None}, source_formats.NO_TURN, 'speakers: user, assistant'),
        ({'query': 'Q', 'response': '\ud800'}, source_formats.MALFORMED, 'message 2'),
        (
            chat('h:Q', 'g: '),
            source_formats.NO_TURN,
            'speakers: human, gpt; a message is empty',
        ),
        ({'query': 'Q'}, source_formats.UNKNOWN, 'lacks response'),
        ({'output': 'A', 'input': 'Q'}, source_formats.UNKNOWN, 'has the fields input, output'),
        (
            {'messages': [{'role': 'user', 'content': [TEXT_PART, {'type': 'image_url'}]}]},
            source_formats.PART,
            "type 'image_url'",
        ),
    ],
)
def test_what_cannot_be_repaired(fields, reason, detail):
    found = read(fields)
    assert (found.reason, list(found.data)) == (reason, [])
    assert found.detail.startswith(detail)


def test_an_unknown_format_names_its_fields(tmp_path):
    source = write_rows(tmp_path / 'f.jsonl', [{'instruction': 'Q', 'output': 'A'}])
    with pytest.raises(UserError, match=r'f\.jsonl:1 has the fields instruction, output, which no'):
        import_(tmp_path / 'out', source)


def test_every_row_is_counted(tmp_path):
    rows = [
        {'id': 'a', **chat(f'h:{QUESTION}', f'g:{ANSWER}')},
        {'id': 'a', **chat(f'g:{ANSWER}', f'h:{QUESTION}', f'g:{ANSWER}', f'h:{QUESTION}')},
        {'id': 'a', **chat(f'h:{QUESTION}', f'g:{ANSWER}')},
        chat(f'h:{QUESTION}', f'g:{ANSWER}'),
        {'id': 0, **chat('g:Hello')},
        {'id': 1, **chat('h:Où est la gare de Lyon ?', 'g:Elle est dans le douzième.')},
    ]
    source = write_rows(tmp_path / 'chats.jsonl', rows)
    source.write_text(source.read_text('utf-8') + '\n{"id": "cut\n', 'utf-8')
    found, total = import_(tmp_path / 'out', source, license='CC0', url='https://a.b')
    assert [row['id'] for row in found] == ['a', 'a#2', 'a#3', 'chats-4']
    assert all(row['data'] == PAIR for row in found)
    assert found[1]['source'] == {
        'id': 'a',
        'title': 'chats.jsonl',
        'url': 'https://a.b',
        'license': 'CC0',
    }
    assert total.dropped == {source_formats.NO_TURN: 1, 'language': 1, 'bad row': 1}
    assert total.counts == {
        'bad rows of chats.jsonl': 1,
        'format: ShareGPT': 6,
        'repair: answers before the first question removed': 1,
        'repair: id added': 1,
        'repair: id made unique': 2,
        'repair: last question without an answer removed': 1,
    }


def test_an_interrupted_import_resumes_with_the_same_bytes(tmp_path, monkeypatch):
    rows = [{'id': 'a', **chat(f'h:{QUESTION} {n}', f'g:{ANSWER}')} for n in range(7)]
    source = write_rows(tmp_path / 'chats.jsonl', rows)

    def import_to(path):
        config = ImportConfig(input=[source])
        given = StageRun(config, release_import.find_inputs(config), path, shard_items=2)
        return asyncio.run(STAGES['import'].run(given))

    import_to(tmp_path / 'whole')
    identified = []

    def interrupt(text):
        identified.append(text)
        if len(identified) == 6:
            raise UserError('interrupted')
        return 'en'

    with monkeypatch.context() as patch:
        patch.setattr(public_datasets, 'identify_language', interrupt)
        with pytest.raises(UserError, match='interrupted'):
            import_to(tmp_path / 'resumed')
    assert len(contents(tmp_path / 'resumed')) < len(contents(tmp_path / 'whole'))
    import_to(tmp_path / 'resumed')
    assert contents(tmp_path / 'resumed') == contents(tmp_path / 'whole')
    assert [row['id'] for row in read_rows(tmp_path / 'whole')] == [
        'a',
        *(f'a#{n}' for n in range(2, 8)),
    ]


def test_files_of_all_kinds(tmp_path):
    fields = FORMATS['MetaMathQA'][0]
    folder = tmp_path / 'in'
    folder.mkdir()
    (folder / 'a.json').write_text(json.dumps([fields, fields], indent=1))
    (folder / 'b.jsonl.bz2').write_bytes(bz2.compress(json.dumps(fields).encode()))
    messages = [{**FORMATS['messages'][0], 'prompt_id': 'x'}]
    parquet.write_table(pyarrow.Table.from_pylist(messages), folder / 'c.parquet')
    (folder / 'notes.txt').write_text('No data.')
    found, _ = import_(tmp_path / 'out', folder)
    assert [row['id'] for row in found] == ['a-1', 'a-2', 'b-1', 'c-1']
    assert [row['subset'] for row in found] == [*3 * ['math'], 'chat_agnostic']
    assert all(row['data'] == PAIR and row['language'] == 'en' for row in found)


def test_a_row_of_conversations_keeps_its_fields(tmp_path):
    rows = [{'id': str(n), 'data': PAIR, 'language': 'English', 'source': 'web'} for n in range(2)]
    rows[1] |= {'language': 'fr', 'subset': 'code', 'source': {'id': 'x'}}
    found, _ = import_(tmp_path / 'out', write_rows(tmp_path / 'f.jsonl', rows), subset='math')
    assert [(row['language'], row['subset']) for row in found] == [('en', 'math'), ('fr', 'code')]
    assert [row['source'] for row in found] == [{'id': '0', 'title': 'f.jsonl'}, {'id': 'x'}]


@pytest.mark.parametrize('name', ['context', 'input', 'history'])
def test_a_part_of_the_question_is_not_lost(name, tmp_path):
    """Dolly has `context` besides the question, and Alpaca `input`."""
    empty = {'instruction': QUESTION, 'response': ANSWER, name: ' ', 'category': 'closed_qa'}
    rows = [empty, {**empty, name: 'Half a day has 12 hours.'}]
    found, total = import_(tmp_path / 'out', write_rows(tmp_path / 'dolly.jsonl', rows))
    assert [row['data'] for row in found] == [PAIR]
    assert total.dropped == {source_formats.LOST_FIELD: 1}
    assert total.counts['ignored field: category'] == 1
    assert f'ignored field: {name}' not in total.counts
    detail = f"'{name}' is not empty: add it to 'instruction', and remove it"
    assert read(rows[1]).detail == detail


def test_ignored_fields_are_counted(tmp_path):
    rows = [FORMATS['MetaMathQA'][0], {**FORMATS['MetaMathQA'][0], 'type': ''}]
    rows.append({'id': 'a', 'title': 'T', **FORMATS['ShareGPT'][0], 'system': '', 'tools': ['x']})
    _, total = import_(tmp_path / 'out', write_rows(tmp_path / 'f.jsonl', rows))
    ignored = {name: n for name, n in total.counts.items() if name.startswith('ignored')}
    assert ignored == {
        'ignored field: original_question': 2,
        'ignored field: tools': 1,
        'ignored field: type': 1,
    }


@pytest.mark.parametrize('suffix', ['json', 'jsonl'])
def test_a_bad_row_is_rejected(tmp_path, suffix):
    good = {'query': QUESTION, 'response': ANSWER}
    rows = [{'query': QUESTION}, good, 'a string', {}, good]
    source = tmp_path / f'metamath.{suffix}'
    text = json.dumps(rows) if suffix == 'json' else '\n'.join(map(json.dumps, rows))
    source.write_text(text, 'utf-8')
    found, total = import_(tmp_path / 'out', source)
    assert [row['id'] for row in found] == ['metamath-2', 'metamath-5']
    assert total.dropped == {source_formats.UNKNOWN: 2, 'bad row': 1}
    assert total.counts['format: unknown'] == 2


def test_a_json_file_may_have_lines(tmp_path):
    """A broken line is one bad row, and a byte order mark is none."""
    line = json.dumps({'id': 7, 'query': QUESTION, 'response': ANSWER})
    source = tmp_path / 'f.json'
    source.write_text(f'\ufeff{line}\n{{"query"\n', 'utf-8')
    (row,), total = import_(tmp_path / 'out', source)
    assert row['source'] == {'id': '7', 'title': 'f.json'}
    assert total.dropped == {'bad row': 1}


def test_a_wrong_file_is_noticed_before_anything_is_written(tmp_path):
    good = write_rows(tmp_path / 'good.jsonl', [FORMATS['MetaMathQA'][0]])
    wrong = write_rows(tmp_path / 'wrong.jsonl', 12 * [{'query': QUESTION}])
    strings = tmp_path / 'strings.json'
    strings.write_text('["a", "b"]')
    late = write_rows(tmp_path / 'late.jsonl', [*9 * [{'text': ANSWER}], FORMATS['MetaMathQA'][0]])
    for path, message in (
        (wrong, r'wrong\.jsonl:1 has the fields query, which no known format has'),
        (strings, r'strings\.json row 1: not a JSON object\.'),
    ):
        run = StageRun(ImportConfig(), [good, path], tmp_path / 'out', shard_items=1)
        with pytest.raises(UserError, match=message):
            asyncio.run(STAGES['import'].run(run))
        assert not (tmp_path / 'out').exists()
    _, total = import_(tmp_path / 'out', late)
    assert total.dropped == {source_formats.UNKNOWN: 9}


def test_the_source_is_the_row_of_the_dataset(tmp_path):
    numbered = {**FORMATS['Magicoder OSS-Instruct'][0], 'raw_index': 40, 'seed': 'def f():'}
    without = {name: value for name, value in numbered.items() if name != 'index'}
    rows = [{**numbered, 'index': 0}, without, {**without, 'raw_index': None}]
    path = write_rows(tmp_path / 'magicoder.jsonl', rows)
    found, total = import_(tmp_path / 'out', path, title='Magicoder-OSS-Instruct-75K')
    assert [row['source']['id'] for row in found] == ['0', '40', '3']
    assert {row['source']['title'] for row in found} == {'Magicoder-OSS-Instruct-75K'}
    assert [row['id'] for row in found] == ['magicoder-1', 'magicoder-2', 'magicoder-3']
    assert total.counts['ignored field: seed'] == 3


def test_parts_of_text_are_joined():
    answer = [{'type': 'text', 'text': 'A'}, {'type': 'text', 'text': 'B'}]
    turns = [{'role': 'user', 'content': [TEXT_PART]}, {'role': 'assistant', 'content': answer}]
    found = read({'messages': turns})
    assert list(found.data) == [QUESTION, 'A\n\nB']
    assert list(found.repairs) == ['parts of a message joined']

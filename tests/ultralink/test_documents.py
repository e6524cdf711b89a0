"""The stage `documents`: filtering of documents and of their lines."""

import asyncio
import dataclasses
import json

import opencc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import document
from tests.ultralink.helpers import WordCounter, read_rows, write_rows

SMALL = {
    'min_document_tokens': 100,
    'max_document_tokens': 2000,
    'segment_tokens': 300,
    'min_segment_tokens': 100,
}


def run(language, source, output, count=None, **how):
    config = DocumentsConfig(language, **{**SMALL, **how})
    given = StageRun(config, [source], output, token_counter=count or WordCounter())
    return asyncio.run(STAGES['documents'].run(given))


def test_the_numbers_are_the_papers():
    config = DocumentsConfig('zh')
    assert dataclasses.astuple(config)[:5] == ('zh', 1000, 10_000, 2000, 1000)


def test_an_output_of_an_earlier_version_resumes(tmp_path):
    """Earlier versions recorded settings as least_… and most_…; their directories are continued."""
    source = write_rows(tmp_path / 'in.jsonl', [document('en', i) for i in range(3)])
    expected = run('en', source, tmp_path / 'out')
    manifest = tmp_path / 'out' / 'manifest.json'
    old = manifest.read_text()
    for name in ('document_tokens', 'segment_tokens'):
        old = old.replace(f'min_{name}', f'least_{name}'.replace('_document', ''))
    old = old.replace('max_document_tokens', 'most_tokens')
    assert old != manifest.read_text() and 'min_' not in old and 'max_' not in old
    manifest.write_text(old)
    assert run('en', source, tmp_path / 'out') == expected
    with pytest.raises(UserError, match='was made with min_document_tokens = 100, not 99'):
        run('en', source, tmp_path / 'out', min_document_tokens=99, min_segment_tokens=99)


@pytest.mark.parametrize('name', ['min_document_tokens', 'segment_tokens'])
def test_a_small_limit_names_the_flag_that_must_follow(name):
    message = rf'_segment_tokens is 1000, more than {name} \(500\), .* set --min-segment-tokens=500'
    with pytest.raises(UserError, match=message):
        DocumentsConfig('en', **{name: 500})


@pytest.mark.parametrize('language', LANGUAGES)
def test_segments_of_each_language(tmp_path, language):
    source = write_rows(tmp_path / 'in.jsonl', [document(language, i) for i in range(3)])
    found = run(language, source, tmp_path / 'out')
    rows = read_rows(tmp_path / 'out')
    assert found.total.kept == 3 and len(rows) > 3
    for number in range(3):
        own = [row for row in rows if row['title'] == document(language, number)['title']]
        assert [row['id'] for row in own] == [f'{language}-{number}-{i}' for i in range(len(own))]
        text = document(language, number)['text']
        kept = '\n'.join(row['text'] for row in own)
        assert text.startswith(kept)
        assert WordCounter()(text[len(kept) :]) < 100
        for row in own:
            assert row['language'] == language
            assert row['tokens'] == WordCounter()(row['text'])
            assert row['tokens'] < 300


SENTENCE = 'The canal was dug by many hands and carried grain to the city every week of the year. '
LINE = st.integers(0, 120).map(lambda words: ' '.join((SENTENCE * 7).split()[:words]))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.lists(LINE, max_size=30).map('\n'.join), min_size=1, max_size=6))
def test_every_word_is_kept_or_counted(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp('documents')
    rows = [{'id': i, 'title': f'T{i}', 'text': text} for i, text in enumerate(texts)]
    found = run('en', write_rows(path / 'in.jsonl', rows), path / 'out')
    words = [len(text.split()) for text in texts]
    reasons = {
        'empty': sum(count == 0 for count in words),
        'short': sum(0 < count < 100 for count in words),
        'long': sum(count > 2000 for count in words),
    }
    assert found.total.dropped == {reason: count for reason, count in reasons.items() if count}
    made = read_rows(path / 'out')
    in_rows = sum(len(row['text'].split()) for row in made)
    kept = sum(count for count in words if 100 <= count <= 2000)
    assert in_rows + found.total.counts.get('tokens in them', 0) == kept
    lasts = [row for row in made if row['tokens'] < 100]
    followed = {
        row['id'].rpartition('-')[0] + f'-{int(row["id"].rpartition("-")[2]) - 1}' for row in made
    }
    assert all(row['id'] in followed for row in lasts)


def test_reasons_are_counted_and_the_first_is_named(tmp_path):
    french, english = document('fr', 0), document('en', 0)
    rows = [
        english,
        {**english, 'text': ' \n'},
        {**english, 'text': 'Short.'},
        french,
        {**english, 'text': english['text'] * 9},
        {**english, 'title': 'Done'},
        {**english, 'text': english['text'].replace('canal', 'Sword')},
        french,
    ]
    done = write_rows(tmp_path / 'done.jsonl', [{'title': 'Done'}])
    words = tmp_path / 'words.txt'
    words.write_text('sword\nwor\n\n')
    source = write_rows(tmp_path / 'in.jsonl', rows)
    found = run('en', source, tmp_path / 'out', done=[done], words=[words])
    expected = ('empty', 'short', 'language', 'long', 'done already', 'listed word')
    assert found.total.dropped == {reason: 1 + (reason == 'language') for reason in expected}
    assert found.total.first == {
        reason: f'in.jsonl:{line}' for line, reason in enumerate(expected, start=2)
    }
    assert found.total.kept == 1
    # Other lists are other settings.
    with pytest.raises(UserError, match='was made with words = '):
        run('en', source, tmp_path / 'out', done=[done])
    with pytest.raises(UserError, match='was made with done = '):
        run('en', source, tmp_path / 'out', words=[words])


def test_traditional_chinese_becomes_simplified(tmp_path):
    chinese = document('zh', 0)
    convert = opencc.OpenCC('s2t').convert
    traditional = {name: convert(value) for name, value in chinese.items()}
    assert traditional['text'] != chinese['text']
    run('zh', write_rows(tmp_path / 'a.jsonl', [traditional]), tmp_path / 'a')
    run('zh', write_rows(tmp_path / 'b.jsonl', [chinese]), tmp_path / 'b')
    assert read_rows(tmp_path / 'a') == read_rows(tmp_path / 'b') != []


def test_a_listed_word_within_chinese(tmp_path):
    words = tmp_path / 'words.txt'
    words.write_text('宝瓶口', 'utf-8')
    source = write_rows(tmp_path / 'in.jsonl', [document('zh', 0)])
    found = run('zh', source, tmp_path / 'out', words=[words])
    assert found.total.dropped == {'listed word': 1}


@pytest.mark.parametrize(
    'row, message',
    [
        ({'title': 't', 'text': 'x'}, "has no 'id'"),
        ({'id': 1, 'text': 'x'}, "has no 'title'"),
        ({'id': 1, 'title': 't'}, "has no 'text'"),
        ({'id': 1.5, 'title': 't', 'text': 'x'}, "must have a string as 'id'"),
        ({'id': 1, 'title': 't', 'text': ['x']}, "must have a string as 'text'"),
    ],
)
def test_a_document_that_is_none(tmp_path, row, message):
    source = write_rows(tmp_path / 'in.jsonl', [document('en', 0), row])
    with pytest.raises(UserError) as error:
        run('en', source, tmp_path / 'out')
    assert str(error.value) == f'{source}:2 {message}.'


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'language': 'xx'}, "Unknown language 'xx'"),
        ({'min_document_tokens': 0}, 'documents.min_document_tokens is 0; it must be at least 1.'),
        (
            {'max_document_tokens': 5},
            'documents.max_document_tokens is 5; it must be at least 1000 (min_document_tokens)',
        ),
        ({'segment_tokens': 1}, 'documents.segment_tokens is 1'),
        ({'min_segment_tokens': 1001}, 'documents.min_segment_tokens is 1001'),
        (
            {'min_document_tokens': 'x'},
            "documents.min_document_tokens is 'x'; it must be a whole number.",
        ),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError) as error:
        DocumentsConfig(**{'language': 'en', **changes})
    assert str(error.value).startswith(message)


def test_what_is_wrong_with_lists(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [document('en', 0)])
    empty = tmp_path / 'words.txt'
    empty.write_text('\n')
    with pytest.raises(UserError, match=r'words\.txt has no words'):
        run('en', source, tmp_path / 'out', words=[empty])
    broken = tmp_path / 'done.jsonl'
    broken.write_text(json.dumps({'name': 'x'}))
    with pytest.raises(UserError, match=r"done\.jsonl:1 has no 'title'"):
        run('en', source, tmp_path / 'out', done=[broken])

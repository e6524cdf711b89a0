"""The command `cache`: prompts, items, replies and tokens of cached replies."""

import asyncio
import contextlib
import sqlite3

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import cache_inspection
from malora_jax.ultralink.cache_inspection import CacheConfig
from malora_jax.ultralink.llm.cache import CachedModel, open_cache
from malora_jax.ultralink.llm.chat import ChatMessage, Reply
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.translate import TranslateConfig
from tests.ultralink.helpers import FakeModel, write_rows

TEXTS = {'I have 3 cups.': ("J'ai 4 tasses.", "J'ai 3 tasses."), 'Good.': ('Bien.',)}


def reply(request):
    replies = TEXTS[request.messages[-1].content]
    return Reply(replies[min(request.sample_index, len(replies) - 1)], 'stop', 10)


@pytest.fixture
def cached(tmp_path):
    """A cache after translating two conversations concurrently, and the requests of the model."""
    rows = [
        {'id': key, 'language': 'en', 'subset': 'math', 'data': data}
        for key, data in (('数-1', ['I have 3 cups.', 'Good.']), ('2', ['Good.', 'Good.']))
    ]
    source, model = write_rows(tmp_path / 'in.jsonl', rows), FakeModel(reply)
    path = tmp_path / 'answers.sqlite'

    async def main():
        with open_cache(path) as cache:
            given = StageRun(
                TranslateConfig('fr'),
                [source],
                tmp_path / 'out',
                model=CachedModel(model, cache),
                concurrency=2,
            )
            await STAGES['translate'].run(given)

    asyncio.run(main())
    return path, model.requests


def inspect(path, item=''):
    return cache_inspection.run(StageRun(CacheConfig(path, item), [], path.parent))[0]


def test_each_request_is_stored_with_its_item(cached):
    path, requests = cached
    with open_cache(path) as cache:
        stored = cache.read_requests()
        of_item = cache.read_requests('数-1')
        assert cache.read_requests(last=1) == stored[-1:]
    assert {(each.messages, each.sample_index) for each in stored} == {
        (request.messages, request.sample_index) for request in requests
    }
    assert len(stored) == len(requests) == 5
    assert {each.item for each in stored} == {'数-1', '2'}
    assert [(each.sample_index, each.reply.text) for each in of_item] == [
        (0, "J'ai 4 tasses."),
        (1, "J'ai 3 tasses."),
        (0, 'Bien.'),
    ]
    assert all(
        each.messages[-1] in (ChatMessage('user', text) for text in TEXTS) for each in stored
    )
    assert {(each.model, each.stage) for each in stored} == {('told', 'translate')}


def test_each_text_is_stored_once(cached):
    with contextlib.closing(sqlite3.connect(cached[0])) as connection:
        texts = [text for (text,) in connection.execute('SELECT text FROM texts')]
    assert len(texts) == len(set(texts)) and 'I have 3 cups.' in texts


def test_the_overview_counts_replies_and_tokens(cached):
    text = inspect(cached[0])
    assert text.startswith(f'{cached[0]}: 5 replies, 50 tokens of prompts and replies\n')
    assert '| told | translate | stop | 5 | 50 |' in text
    assert "  数-1, translate, attempt 2, stop, 10 tokens: J'ai 3 tasses." in text


def test_an_item_has_its_prompts_and_replies(cached):
    text = inspect(cached[0], '数-1')
    first, *rest = text.split('\n\n数-1, ')
    assert len(rest) == 2
    assert first.startswith('数-1, translate, attempt 1, stop, 10 tokens, model told\n  system:\n')
    assert "  user:\n    | I have 3 cups.\n  reply:\n    | J'ai 4 tasses." in first
    with pytest.raises(UserError, match="has no request of an item 'none'"):
        inspect(cached[0], 'none')


def test_a_cache_of_an_earlier_version_stays_valid(tmp_path):
    path = tmp_path / 'old.sqlite'
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(
            'CREATE TABLE replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT '
            'NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID'
        )
        connection.execute("INSERT INTO replies VALUES (x'00', 'Old.', 'stop', 7)")
        connection.commit()
    text = inspect(path)
    assert '| ? | ? | stop | 1 | 7 |' in text and 'Latest requests' not in text
    with open_cache(path) as cache:
        assert cache.get(b'\0') == Reply('Old.', 'stop', 7)


def test_a_file_that_is_missing_is_not_created(tmp_path):
    with pytest.raises(UserError, match=r'There is no data file .*: give the --cache'):
        inspect(tmp_path / 'none.sqlite')
    assert not any(tmp_path.iterdir())

"""The cache of answers: identity of requests, and persistence after a kill."""

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import cache
from malora_jax.ultralink.llm.cache import CachedModel
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest, Reply
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from tests.helpers.openai_stub import serve_stub
from tests.ultralink.helpers import FakeModel

REQUEST = ModelRequest('some', (ChatMessage('user', 'Why?'),), ChatSampling(), 0)


def complete(path, model, *requests):
    async def main():
        with cache.open_cache(path) as kept:
            asked = CachedModel(model, kept)
            return await asyncio.gather(*map(asked.complete, requests)), kept.total_tokens

    return asyncio.run(main())


def test_an_answer_is_asked_for_once(tmp_path):
    model = FakeModel(lambda request: Reply('é “”\n', 'length', 7))
    for _ in range(3):
        replies, tokens = complete(tmp_path / 'a' / 'c.sqlite', model, REQUEST, REQUEST)
        assert replies == [Reply('é “”\n', 'length', 7)] * 2
        assert tokens == 7
    assert model.requests == [REQUEST]


@pytest.mark.parametrize(
    'changes',
    [
        {'stage': 'other'},
        {'messages': (ChatMessage('system', 'Why?'),)},
        {'messages': (ChatMessage('user', 'Why'), ChatMessage('user', '?'))},
        {'sampling': ChatSampling(max_tokens=7)},
        {'sampling': ChatSampling(temperature=0.5)},
        {'sampling': ChatSampling(top_p=0.5)},
        {'sampling': ChatSampling(seed=1)},
        {'sample_index': 1},
    ],
)
def test_another_request_is_another_answer(tmp_path, changes):
    other = dataclasses.replace(REQUEST, **changes)
    model = FakeModel(lambda request: str(request.sampling_seed))
    replies, _ = complete(tmp_path / 'c.sqlite', model, REQUEST, other)
    assert replies[0] != replies[1]
    assert 0 <= other.sampling_seed < 2**31


def test_another_model_is_another_answer(tmp_path):
    one, two = FakeModel(lambda request: 'one'), FakeModel(lambda request: 'two')
    two.name = 'other'
    assert complete(tmp_path / 'c.sqlite', one, REQUEST)[0][0].text == 'one'
    assert complete(tmp_path / 'c.sqlite', two, REQUEST)[0][0].text == 'two'


def test_another_endpoint_is_another_answer(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    replies = {}
    for said in ('one', 'two'):
        with serve_stub(answer=lambda body, said=said: said) as stub:

            async def main(address=stub.address):
                choice = ModelChoice('m', tmp_path / 'c.sqlite', base_url=address)
                async with open_model(choice) as model:
                    return await model.complete(REQUEST)

            replies[said] = asyncio.run(main()).text
    assert replies == {'one': 'one', 'two': 'two'}


def test_replies_of_a_model_in_this_process_cost_nothing(tmp_path, monkeypatch):
    """They are often in the cache of `judge`, next to the answers that it compares."""
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    path = tmp_path / 'c.sqlite'
    local = FakeModel(lambda request: Reply('Because.', 'stop', 10**6))
    local.name = 'local:tiny:0123'
    complete(path, local, REQUEST)
    with serve_stub() as stub:

        async def main():
            choice = ModelChoice('m', path, base_url=stub.address, token_limit=10**5)
            async with open_model(choice) as model:
                assert not model.is_empty
                return await model.complete(REQUEST), model.report()

        reply, report = asyncio.run(main())
    assert reply.text == 'Yes.'
    prompt, completion = (stub.token_counts[f'{kind}_tokens'] for kind in ('prompt', 'completion'))
    counts = f'{prompt} prompt tokens, {completion} completion tokens'
    assert report == f'm, this run: 1 requests, {counts}\nm, all runs in the cache: {counts}'


def test_replies_of_an_earlier_version_stay_usable(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    path = tmp_path / 'c.sqlite'
    with sqlite3.connect(path) as connection:
        connection.execute(
            'CREATE TABLE replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, '
            'finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID'
        )
        key = hashlib.sha256(b'm\0' + REQUEST.digest).digest()
        connection.execute('INSERT INTO replies VALUES (?, ?, ?, ?)', (key, 'Old.', 'stop', 9))

    async def main():
        choice = ModelChoice('m', path, base_url='http://127.0.0.1:1/v1')
        async with open_model(choice) as model:
            return await model.complete(REQUEST)

    assert asyncio.run(main()) == Reply('Old.', 'stop', 9)


def test_an_error_is_not_kept(tmp_path):
    def fail(request):
        raise OSError('down')

    with pytest.raises(OSError, match='down'):
        complete(tmp_path / 'c.sqlite', FakeModel(fail), REQUEST)
    assert (
        complete(tmp_path / 'c.sqlite', FakeModel(lambda request: 'up'), REQUEST)[0][0].text == 'up'
    )


def test_a_file_that_is_no_cache(tmp_path):
    path = tmp_path / 'c.sqlite'
    path.write_text('Something else, which is long enough to be looked at by SQLite.' * 20)
    with pytest.raises(UserError, match=r'c\.sqlite cannot be used as the reply cache'):
        cache.open_cache(path).__enter__()


def test_a_file_that_breaks_while_it_is_used(tmp_path):
    path = tmp_path / 'c.sqlite'
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute('CREATE TABLE replies (number INTEGER)')
    with pytest.raises(UserError, match=r'c\.sqlite cannot be used .*no such column'):
        complete(path, FakeModel(lambda request: 'Yes.'), REQUEST)


@pytest.mark.parametrize('field', [{'max_tokens': 0}, {'temperature': -1}, {'top_p': 0.0}])
def test_sampling_that_cannot_be(field):
    with pytest.raises(UserError, match=next(iter(field))):
        ChatSampling(**field)


WRITER = """
import sys, pathlib
from malora_jax.ultralink.llm import cache
from malora_jax.ultralink.llm.chat import Reply
with cache.open_cache(pathlib.Path(sys.argv[1])) as kept:
    number = 0
    while True:
        kept.put(number.to_bytes(4, 'big'), Reply('x' * 1000, 'stop', 1))
        print(number, flush=True)
        number += 1
"""


def test_what_was_said_to_be_kept_outlives_a_kill(tmp_path):
    path = tmp_path / 'c.sqlite'
    with subprocess.Popen(
        [sys.executable, '-c', WRITER, path], stdout=subprocess.PIPE, text=True
    ) as process:
        said = [int(process.stdout.readline()) for _ in range(300)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split('\n')[:-1]]
    with cache.open_cache(path) as kept:
        assert kept.total_tokens >= len(said) >= 300
        assert all(kept.get(number.to_bytes(4, 'big')) for number in said)

"""The client of an endpoint, over a real socket, and the endpoint's failures."""

import asyncio
import json
import time

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import endpoint
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest, Reply
from malora_jax.ultralink.llm.endpoint import Endpoint
from malora_jax.ultralink.llm.model_choice import ModelChoice
from tests.helpers.openai_stub import FailurePlan, serve_stub

KEY = 'sk-not-to-be-seen'


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)


def request(text='Why?', max_tokens=10, sample=0):
    messages = (ChatMessage('system', 'Be brief.'), ChatMessage('user', text))
    return ModelRequest('some', messages, ChatSampling(max_tokens, 0.5, 0.9), sample)


def complete(address, *requests, timeout_s=30.0, token_limit=0, spent=0, each=False):
    async def main():
        model = Endpoint(
            'm', address, timeout_s=timeout_s, token_limit=token_limit, tokens_used=spent
        )
        try:
            return await asyncio.gather(*map(model.complete, requests), return_exceptions=each)
        finally:
            await model.close()

    return asyncio.run(main())


def test_a_request_and_its_answer():
    with serve_stub(answer=lambda body: ' Because.\n') as stub:
        [reply] = complete(stub.address, request())
    [body] = stub.requests.values()
    assert body == {
        'model': 'm',
        'messages': [
            {'role': 'system', 'content': 'Be brief.'},
            {'role': 'user', 'content': 'Why?'},
        ],
        'max_tokens': 10,
        'temperature': 0.5,
        'top_p': 0.9,
        'seed': request().sampling_seed,
    }
    assert stub.headers['Authorization'] == f'Bearer {KEY}'
    assert reply == Reply('Because.', 'stop', 13 // 4 + 10 // 4)


def test_too_many_requests_are_waited_for_as_asked():
    plan = FailurePlan({'rate_limit': 1.0}, retry_after=('retry-after', '0.2'))
    with serve_stub(plan) as stub:
        start = time.monotonic()
        [reply] = complete(stub.address, request())
        assert time.monotonic() - start >= 3 * 0.2
    assert reply.text == 'Yes.'
    assert stub.failure_counts['rate_limit'] == 3


@pytest.mark.parametrize('failure', ['error', 'timeout'])
def test_a_try_that_fails_is_made_again(failure, monkeypatch):
    monkeypatch.setattr('openai._base_client.INITIAL_RETRY_DELAY', 0.01)
    with serve_stub(FailurePlan({failure: 1.0}, hang_s=2.0)) as stub:
        [reply] = complete(stub.address, request(), timeout_s=0.7)
    assert reply.text == 'Yes.'
    assert stub.failure_counts[failure] == 3 and sum(stub.answer_counts.values()) == 1


@pytest.mark.parametrize(
    'always, message',
    [
        ((500, 'application/json', '{"error": {"message": "Bro\\nken."}}'), 'status 500'),
        ((429, 'application/json', '{"error": {"message": "No quota."}}'), 'status 429'),
    ],
)
def test_what_fails_again_and_again_is_one_line(always, message, monkeypatch):
    monkeypatch.setattr(endpoint, '_RETRIES', 1)
    with serve_stub(FailurePlan(fixed_response=always)) as stub, pytest.raises(OSError) as error:
        complete(stub.address, request())
    assert f'The endpoint {stub.address}/ answers with {message}: ' in str(error.value)
    assert '\n' not in str(error.value)
    assert sum(stub.attempt_counts.values()) == 2


def test_a_long_retry_after_is_waited_for_too(monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def no_sleep(seconds):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(endpoint.asyncio, 'sleep', no_sleep)
    plan = FailurePlan({'rate_limit': 1.0}, retry_after=('retry-after', '900'))
    with serve_stub(plan) as stub:
        [reply] = complete(stub.address, request())
    assert reply.text == 'Yes.'
    assert waits.count(900.0) == 3


@pytest.mark.parametrize(
    'headers, wait_s',
    [
        ({'retry-after': '7'}, 7),
        ({'retry-after-ms': '1500', 'retry-after': '9'}, 1.5),
        ({'retry-after': 'Sun, 09 Sep 2001 01:47:40 GMT'}, 60),
        ({'retry-after': '-3'}, None),
        ({'retry-after': '90000'}, None),
        ({'retry-after': 'soon'}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, wait_s, monkeypatch):
    monkeypatch.setattr(endpoint.time, 'time', lambda: 1e9)
    assert endpoint._retry_after(headers) == wait_s


def test_an_endpoint_that_is_not_there(monkeypatch):
    monkeypatch.setattr(endpoint, '_RETRIES', 0)
    with serve_stub() as stub:
        address = stub.address
    with pytest.raises(
        OSError, match=r'^The endpoint http://127.*/v1/ cannot be reached: .*Connect call'
    ):
        complete(address, request())


def test_retries_are_announced_once_without_tls(monkeypatch, capsys):
    monkeypatch.setattr(endpoint, '_RETRIES', 2)
    monkeypatch.setattr(endpoint.asyncio, 'sleep', lambda seconds, sleep=asyncio.sleep: sleep(0))
    with serve_stub() as stub:
        address = stub.address
    errors = complete(address, request('a'), request('b'), each=True)
    assert all(isinstance(error, OSError) and 'ssl' not in str(error) for error in errors)
    announced = capsys.readouterr().err
    assert announced.startswith(f'The endpoint {address}/ cannot be reached: ')
    assert announced.endswith('; each request is retried up to 2 times.\n')
    assert announced.count('\n') == 1


def test_a_rejected_request_counts_as_failed():
    async def main(address):
        model = Endpoint('m', address, timeout_s=30.0, token_limit=0, tokens_used=0)
        try:
            with pytest.raises(UserError, match='status 404'):
                await model.complete(request())
        finally:
            await model.close()
        return model.meter

    plan = FailurePlan(fixed_response=(404, 'text/plain', '404: Not Found'))
    with serve_stub(plan) as stub:
        meter = asyncio.run(main(stub.address))
    assert meter.requests == sum(stub.attempt_counts.values()) == 1
    assert meter.errors == {'rejected': 1}


def test_an_endpoint_that_never_answers(monkeypatch):
    monkeypatch.setattr(endpoint, '_RETRIES', 0)
    plan = FailurePlan({'timeout': 1.0}, hang_s=0.5)
    with serve_stub(plan) as stub, pytest.raises(OSError, match=r'cannot be reached: .+'):
        complete(stub.address, request(), timeout_s=0.1)


@pytest.mark.parametrize('status', [401, 403])
def test_a_key_that_is_not_taken_is_not_shown(status):
    body = json.dumps({'error': {'message': f'Incorrect API key provided: {KEY}'}})
    plan = FailurePlan(fixed_response=(status, 'application/json', body))
    with serve_stub(plan) as stub, pytest.raises(UserError) as error:
        complete(stub.address, request())
    assert 'rejects the API key in OPENAI_API_KEY' in str(error.value)
    assert KEY not in str(error.value)
    assert sum(stub.attempt_counts.values()) == 1


def test_a_missing_key_is_one_line(monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY')
    with pytest.raises(UserError, match=r'^The environment variable OPENAI_API_KEY is not set'):
        complete('http://127.0.0.1:1/v1', request())


@pytest.mark.parametrize('status', [400, 404, 422])
def test_settings_that_are_not_taken_are_the_users_mistake(status):
    body = json.dumps({'error': {'message': 'max_tokens\nis too large', 'code': 'invalid'}})
    plan = FailurePlan(fixed_response=(status, 'application/json', body))
    with serve_stub(plan) as stub, pytest.raises(UserError) as error:
        complete(stub.address, request())
    assert f'answers with status {status}: ' in str(error.value)
    assert 'max_tokens is too large' in str(error.value)


@pytest.mark.parametrize('code', ['context_length_exceeded', 'content_filter'])
def test_messages_that_are_refused_are_the_stages_matter(code):
    body = json.dumps({'error': {'message': 'No.', 'code': code}})
    with serve_stub(FailurePlan(fixed_response=(400, 'application/json', body))) as stub:
        assert complete(stub.address, request()) == [Reply('', 'refused', 0)]


@pytest.mark.parametrize(
    'body, expected',
    [
        ('{"choices"', Reply('', 'malformed', 0)),
        ('{}', Reply('', 'malformed', 0)),
        ('[]', Reply('', 'malformed', 0)),
        ('{"choices": [], "usage": {"total_tokens": 5}}', Reply('', 'malformed', 5)),
        ('{"choices": {"0": 1}, "usage": 7}', Reply('', 'malformed', 0)),
        ('{"choices": [{"message": {"content": null}}]}', Reply('', 'malformed', 0)),
        ('{"choices": [{"message": {"content": "x\\ud800"}}]}', Reply('x?', 'stop', 0)),
        (
            '{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}',
            Reply('x', 'content_filter', 0),
        ),
    ],
)
def test_an_answer_of_another_form(body, expected):
    with serve_stub(FailurePlan(fixed_response=(200, 'application/json', body))) as stub:
        assert complete(stub.address, request()) == [expected]


def test_an_error_that_comes_as_an_answer_is_none():
    body = '{"error": {"message": "Out of\\ncredit.", "code": 402}}'
    expected = r'answers with an error: Out of credit\.'
    with (
        serve_stub(FailurePlan(fixed_response=(200, 'application/json', body))) as stub,
        pytest.raises(OSError, match=expected),
    ):
        complete(stub.address, request())


@pytest.mark.parametrize('address', ['', '127.0.0.1:8000/v1', 'localhost'])
def test_an_address_that_is_none(tmp_path, address):
    with pytest.raises(UserError, match=r'--base_url is .*; it must be an address that begins'):
        ModelChoice('m', tmp_path / 'c.sqlite', base_url=address)


def test_something_that_is_no_such_endpoint():
    plan = FailurePlan(fixed_response=(200, 'text/html', '<html>Welcome</html>'))
    expected = r'did not reply with JSON: --base_url must be'
    with serve_stub(plan) as stub, pytest.raises(UserError, match=expected):
        complete(stub.address, request())


def test_never_more_than_the_limit_is_spent():
    requests = [request('x' * 40, 100, sample=i) for i in range(30)]
    most = endpoint._max_usage(requests[0]).total
    with serve_stub(FailurePlan(latency_s=0.02), lambda body: 'y' * 200) as stub:
        replies = complete(stub.address, *requests, token_limit=1000, spent=100, each=True)
    answered = [reply for reply in replies if isinstance(reply, Reply)]
    refused = [reply for reply in replies if isinstance(reply, UserError)]
    assert len(answered) + len(refused) == 30
    spent = 100 + sum(reply.tokens for reply in answered)
    # At most the limit is spent, and at least so much that the next request might have exceeded it.
    assert 1000 - most < spent <= 1000
    assert sum(stub.attempt_counts.values()) == len(answered)
    assert str(refused[0]).startswith(
        f'The next request might exceed --token-limit=1,000; {spent} '
    )


def test_tokens_of_a_request_are_bounded_by_bytes():
    most = endpoint._max_usage(request('é' * 100, 50)).total
    assert most >= len('Be brief.') + 200 + 50

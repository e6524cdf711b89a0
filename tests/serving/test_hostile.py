"""No request affects other requests, whatever its content."""

import concurrent.futures
import functools
import json
import logging
import socket
import time

import httpx
import jax
import pytest

from malora_jax.models import decoding
from malora_jax.models.engine import Engine
from malora_jax.serving import scheduler as scheduler_lib
from malora_jax.serving.protocol import ChatRequest, parse
from tests.helpers.language_model import AsciiTokenizer
from tests.helpers.servers import (
    is_error,
    language_model,
    post,
    post_chat,
    send_raw,
    serve_in_thread,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


class SlowTokenizer(AsciiTokenizer):
    """Tokenizer that takes two seconds for a text with the word `slow`."""

    def encode(self, text, *, continues=False):
        if 'slow' in text:
            time.sleep(2)
        return super().encode(text)


@pytest.fixture(scope='module')
def address(compile_quickly):
    model = language_model(tokenizer=SlowTokenizer())
    with serve_in_thread(model, batch_size=4, body_timeout_s=1.0) as found:
        yield found


@pytest.mark.parametrize(
    'change, message',
    [
        ({'top_k': 2**31}, 'top_k: Input should be less than or equal to 2147483647.'),
        ({'top_k': True}, 'top_k: Input should be a valid integer.'),
        ({'max_tokens': True}, 'max_tokens: Input should be a valid integer.'),
        ({'max_tokens': '5'}, 'max_tokens: Input should be a valid integer.'),
        ({'max_tokens': 10**30}, 'max_tokens: Input should be less than or equal to 2147483647.'),
        ({'seed': 2**63}, 'seed: Input should be less than or equal to 9223372036854775807.'),
        ({'n': 17}, 'n: Input should be less than or equal to 16.'),
        ({'stop': ['x'] * 5}, 'stop: List should have at most 4 items after validation, not 5.'),
        ({'stop': 'x' * 1001}, 'stop: String should have at most 1000 characters.'),
        ({'stream': 1}, 'stream: Input should be a valid boolean.'),
        ({'model': 'x' * 257}, 'model: String should have at most 256 characters.'),
        ({'messages': [{'role': 'user', 'content': 'x'}] * 4097}, 'at most 4096 items'),
        ({str(i): 1 for i in range(64)}, 'The body: An object may have at most 64 fields.'),
        ({'metadata': [0] * 100_001}, 'The body: A request may have at most 100,000 values.'),
        ({'metadata': ['","'] * 100_001}, 'The body: A request may have at most 100,000 values.'),
        ({'metadata': functools.reduce(lambda x, _: [x], range(250), 0)}, 'recursion limit'),
        ({'messages': [{'role': 'user', 'content': '\ud800'}]}, 'unexpected end of hex escape'),
        ({'temperature': float('nan')}, 'The body is not valid JSON: expected value'),
    ],
)
def test_a_value_beyond_its_range(address, change, message):
    body = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'x'}]} | change
    found = post(address, json.dumps(body).encode())
    assert found.status_code == 422 and is_error(422, found.content)
    assert message in found.json()['error']['message']


def test_the_field_at_fault_is_named(address):
    errors = [post_chat(address, **{field: -1}).json()['error'] for field in ('top_k', 'n')]
    assert [error['param'] for error in errors] == ['top_k', 'n']
    assert post_chat(address, model='big').json()['error']['param'] == 'model'


def test_values_at_the_end_of_their_range(address):
    alone = post_chat(address).json()['choices']
    ends = {'top_k': 2**31 - 1, 'seed': -(2**63), 'stop': ['x' * 1000] * 4, 'presence_penalty': 0}
    assert post_chat(address, **ends).json()['choices'] == alone
    # As float32 it is zero, so only the most probable token remains.
    found = post_chat(address, temperature=1, top_p=1e-60).json()['choices']
    assert found == alone


def test_marks_in_a_text_are_no_values():
    content = '[{,"\\' * 200_000
    body = {'model': 'a', 'messages': [{'role': 'user', 'content': content}]}
    (message,) = parse(ChatRequest, json.dumps(body).encode()).messages
    assert message.content == content


def test_a_long_text_is_refused_before_it_is_tokenized(address, monkeypatch):
    monkeypatch.setattr(SlowTokenizer, 'encode', lambda *_, **__: 1 / 0)
    text = '9' * 4_000_000
    message = f'{len(text):,} characters do not fit into the context'
    for found in (
        post_chat(address, messages=[{'role': 'user', 'content': text}]),
        httpx.post(
            f'{address}/v1/completions', json={'model': 'tiny', 'prompt': ['x', text]}, timeout=60
        ),
    ):
        assert found.status_code == 413 and message in found.json()['error']['message']


def test_nobody_waits_for_the_tokens_of_others(address):
    post_chat(address)  # Compile first.
    slow = [{'role': 'user', 'content': 'slow' + 'x' * 1000}]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        other = pool.submit(post_chat, address, messages=slow)
        time.sleep(0.3)
        start = time.monotonic()
        assert httpx.get(f'{address}/health').status_code == 200
        assert post_chat(address).status_code == 200
        assert time.monotonic() - start < 1.5 and not other.done()
        assert other.result().status_code == 200


@pytest.mark.parametrize(
    'method, path, status',
    [
        ('GET', '/', 404),
        ('GET', '/v1/nothing', 404),
        ('GET', '/v1/models/nothing', 404),
        ('GET', '/v1/models/a/b', 404),
        ('GET', '/v1/completions', 405),
        ('DELETE', '/v1/models', 405),
        ('POST', '/health', 405),
    ],
)
def test_a_path_that_is_none(address, method, path, status):
    found = httpx.request(method, address + path)
    assert found.status_code == status and is_error(status, found.content)
    assert ('allow' in found.headers) == (status == 405)


def test_one_model(address):
    found = httpx.get(f'{address}/v1/models/tiny').json()
    assert found in httpx.get(f'{address}/v1/models').json()['data'] and found['id'] == 'tiny'


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'\xff\xfe', b'9' * 5000, b'null'])
def test_a_body_that_is_no_request(address, body):
    found = post(address, body)
    assert found.status_code == 422 and is_error(422, found.content)


def test_a_form_that_a_page_sends(address):
    body = b'{"model": "tiny", "prompt": "x"}'
    headers = {'Content-Type': 'text/plain'}
    found = httpx.post(f'{address}/v1/completions', content=body, headers=headers)
    assert found.status_code == 422 and 'application/json' in found.json()['error']['message']


@pytest.mark.parametrize(
    'head',
    [
        b'GET /health HTTP/1.1\r\n\r\n',
        b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n',
        b'GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
        b'GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n',
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n'
        b'Content-Type: application/json\r\n\r\nzz\r\n',
    ],
)
def test_what_is_no_http(address, head):
    status, body = send_raw(address, head)
    assert status == 400 and is_error(400, body)


def test_a_request_is_answered_once(address, caplog):
    """The body is broken, and the application also refuses the host."""
    head = 'POST /v1/completions HTTP/1.1\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'
    uvicorn_log = logging.getLogger('uvicorn.error')
    uvicorn_log.addHandler(caplog.handler)
    try:
        status, body = send_raw(address, head.encode())
        time.sleep(0.2)
    finally:
        uvicorn_log.removeHandler(caplog.handler)
    assert status == 400 and is_error(400, body)
    assert 'Exception' not in caplog.text


@pytest.mark.parametrize('head', ['Content-Length: 100', 'Transfer-Encoding: chunked'])
def test_a_body_that_does_not_arrive(address, head):
    start = time.monotonic()
    request = (
        'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
        f'{head}\r\n\r\n1\r\n{{\r\n'
    )
    status, body = send_raw(address, request.encode())
    assert status == 408 and is_error(408, body)
    assert 0.9 < time.monotonic() - start < 20


def test_a_head_that_does_not_arrive(address, monkeypatch):
    monkeypatch.setattr('malora_jax.serving.server._HEAD_TIMEOUT_S', 0.5)
    status, body = send_raw(address, b'GET /health HTTP/1.1\r\nHost: local')
    assert status == 408 and is_error(408, body)
    # A connection that waits for its next request does not time out.
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f'{address}/health').status_code == 200
            time.sleep(0.4)


def test_hosts(address):
    def status(address, host, **headers):
        headers = {'Host': host} | headers
        return httpx.get(f'{address}/v1/models', headers=headers).status_code

    good = ['localhost', 'LOCALHOST:99', '127.0.0.1:8000', '[::1]:8000', '[::1]', '192.168.0.7']
    bad = ['evil.example', 'evil.example:8000', 'localhost.evil.example', '127.0.0.1.evil.example']
    assert {status(address, host) for host in good} == {200}
    assert {status(address, host) for host in bad} == {421}
    found = httpx.get(f'{address}/health', headers={'Host': 'evil.example'})
    assert is_error(421, found.content)
    assert send_raw(address, b'GET /health HTTP/1.0\r\n\r\n')[0] == 200
    with serve_in_thread(allowed_hosts=['models.example']) as other:
        assert status(other, 'Models.example:80') == 200 and status(other, bad[0]) == 421
    with serve_in_thread(api_key='secret') as other:
        assert status(other, bad[0], Authorization='Bearer secret') == 200
        assert status(other, bad[0]) == 401


def begin_fails_for(token: int, monkeypatch) -> None:
    """Make prefill fail for every prompt that ends with the token."""
    begin = Engine._prefill

    def failing(engine, requests):
        if any(request.prompt[-1] == token for request in requests):
            raise RuntimeError('RESOURCE_EXHAUSTED')
        return begin(engine, requests)

    monkeypatch.setattr(Engine, '_prefill', failing)


def steps_fail_with(token: int, monkeypatch) -> list[int]:
    """Make every decode step fail that includes a text whose prompt ends with the token.

    Returns:
        Number of active cache slots in each failed step.
    """
    write, begin, failures, bad = decoding.decode, Engine._prefill, [], {}

    def begin_and_mark(engine, requests):
        slots, first_tokens = begin(engine, requests)
        bad.update((s, r.prompt[-1] == token) for s, r in zip(slots, requests, strict=True))
        return slots, first_tokens

    def failing(model, count, variables, layers, rows, ends):
        found = write(model, count, variables, layers, rows, ends)
        writes = jax.device_get(rows.active if not rows.active.is_deleted() else found[0].active)
        writing = [row for row, yes in enumerate(writes) if yes]
        if any(bad.get(row) for row in writing):
            failures.append(len(writing))
            raise RuntimeError('INTERNAL: the device failed')
        return found

    monkeypatch.setattr(Engine, '_prefill', begin_and_mark)
    monkeypatch.setattr(decoding, 'decode', failing)
    return failures


def completion(address: str, prompt: str, stream: bool = False) -> str | int:
    """Return the generated text, or the status of an error."""
    body = {'model': 'tiny', 'prompt': prompt, 'max_tokens': 60, 'temperature': 0.7, 'seed': 3}
    found = httpx.post(f'{address}/v1/completions', json=body | {'stream': stream}, timeout=120)
    if not stream:
        return found.json()['choices'][0]['text'] if found.status_code == 200 else found.status_code
    events = [line.removeprefix('data: ') for line in found.text.splitlines() if line]
    assert events[-1] == '[DONE]'
    chunks = [json.loads(event) for event in events[:-1]]
    if 'error' in chunks[-1]:
        return chunks[-1]['error']['code']
    return ''.join(chunk['choices'][0]['text'] for chunk in chunks)


@pytest.mark.parametrize('fails', [begin_fails_for, steps_fail_with])
def test_a_text_that_fails_is_the_only_one(address, monkeypatch, capfd, fails):
    prompts = [f'Once {i}' for i in range(7)] + ['Once !']
    expected = [completion(address, prompt) for prompt in prompts[:-1]]
    failures = fails(ord('!'), monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for stream in (False, True):
            ask = functools.partial(completion, address, stream=stream)
            assert list(pool.map(ask, prompts)) == [*expected, 500]
    assert failures is None or failures[-1] == 1
    assert 'RuntimeError' in capfd.readouterr().err


def test_a_step_that_fails_once_is_repeated(address, monkeypatch, capfd):
    """Clients do not notice it: no token is repeated or missing."""
    prompts = [f'Twice {i}' for i in range(6)]
    expected = [completion(address, prompt) for prompt in prompts]
    step, count = Engine.step, [0]

    def failing(engine):
        count[0] += 1
        if count[0] == 3:
            step(engine)
            raise RuntimeError('INTERNAL: the device failed')
        return step(engine)

    monkeypatch.setattr(Engine, 'step', failing)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ask = functools.partial(completion, address, stream=True)
        found = list(pool.map(ask, prompts))
    assert found == expected
    assert 'the device failed' in capfd.readouterr().err


def test_a_text_that_cannot_be_decoded_is_the_only_one(address, monkeypatch, capfd):
    expected = completion(address, 'Once')
    add, bad = scheduler_lib.TextStream.add, []

    def failing(stream, ids):
        bad.append(stream)
        if stream is bad[0]:
            raise ValueError('no text')
        return add(stream, ids)

    monkeypatch.setattr(scheduler_lib.TextStream, 'add', failing)
    assert completion(address, 'Once') == 500
    assert completion(address, 'Once') == expected
    assert 'no text' in capfd.readouterr().err


def test_a_stream_that_is_dropped_at_once(address):
    body = b'{"model": "tiny", "prompt": "x", "max_tokens": 400, "stream": true}'
    head = (
        'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
        f'Content-Length: {len(body)}\r\n\r\n'
    ).encode()
    host, port = address.removeprefix('http://').split(':')
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
    until = time.monotonic() + 30
    while httpx.get(f'{address}/health').json()['open_requests'] and time.monotonic() < until:
        time.sleep(0.1)
    assert httpx.get(f'{address}/health').json()['open_requests'] == 0

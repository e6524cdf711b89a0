"""Random requests to a server that serves other clients, which must not be affected.

Some requests are made from the server's OpenAPI schema, with values beyond every range. Others are
made by hand: they are not valid HTTP or JSON, or arrive late or never.
"""

import collections
import contextlib
import json
import random
import socket
import threading

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode

from tests.helpers.servers import is_error, post_chat, serve_in_process

pytestmark = pytest.mark.fuzz

# Statuses that no request may cause.
_NEVER = (500, 502)
_PATHS = (b'/health', b'/v1/models', b'/v1/models/tiny', b'/v1/completions', b'/')


@pytest.fixture(scope='module')
def log(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'log'


@pytest.fixture(scope='module')
def address(log):
    with log.open('w') as file, serve_in_process('--rows=4', log=file) as (_, found):
        post_chat(found)
        yield found


@pytest.fixture
def witness(address, log):
    """Client that repeats one request and checks that the answer never changes."""
    expected = post_chat(address, seed=1, temperature=0.7, max_tokens=12).json()['choices']
    found, stopped = [], threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            response = post_chat(address, seed=1, temperature=0.7, max_tokens=12)
            found.append(response.json().get('choices', response.text))
            stopped.wait(0.2)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stopped.set()
    thread.join()
    assert found and all(answer == expected for answer in found)
    text = log.read_text()
    assert 'Traceback' not in text, text[text.index('Traceback') :][:5000]


def check(status: int, body: bytes, sent: object) -> None:
    """Check a response; a failure prints the request."""
    assert status not in _NEVER, (status, body, sent)
    assert status < 400 or is_error(status, body), (status, body, sent)


def test_requests_of_the_schema(address, witness, attempts):
    schema = schemathesis.openapi.from_url(f'{address}/openapi.json')
    sent: collections.Counter[str] = collections.Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    for rng in attempts(3):
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                cases = operation.as_strategy(generation_mode=mode)

                @hypothesis.seed(rng.randrange(2**32))
                @hypothesis.settings(
                    max_examples=4,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @hypothesis.given(cases)
                def run(case) -> None:
                    sent[case.operation.path] += 1
                    response = case.call(base_url=address, timeout=120)
                    check(response.status_code, response.content, case.as_curl_command())

                # A path without parameters has no invalid parameters.
                with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                    run()
    assert sent.keys() == {operation.path for operation in operations}


def _text(rng: random.Random) -> str:
    kinds = (
        lambda: '9' * rng.choice((1, 1000, 300_000)),
        lambda: rng.choice('\ud800\udfff\x00\ufffd\u202e😀é') * rng.choice((1, 100)),
        lambda: ''.join(chr(rng.randrange(1, 0x110000)) for _ in range(20)),
        lambda: rng.choice(('<|im_end|>', '{{ 7 * 7 }}', '\\', '"', '[{,')) * rng.choice((1, 2000)),
        lambda: '',
    )
    return rng.choice(kinds)()


def _value(rng: random.Random, depth: int = 0):
    numbers = [
        sign * 2**power + d for power in (31, 32, 63, 64) for sign in (1, -1) for d in (-1, 0)
    ]
    kinds = (
        lambda: rng.choice([*numbers, 0, 1, -1, 10**400]),
        lambda: rng.choice((1e308, -1e308, 1e-320, 0.5, float('nan'), float('inf'))),
        lambda: rng.choice((True, False, None)),
        lambda: _text(rng),
        lambda: [_value(rng, depth + 1) for _ in range(rng.randrange(3))] if depth < 4 else [],
        lambda: {_text(rng)[:50]: _value(rng, depth + 1)} if depth < 4 else {},
    )
    return rng.choice(kinds)()


_FIELDS = (
    *('model', 'messages', 'prompt', 'max_tokens', 'max_completion_tokens', 'temperature', 'top_p'),
    *('top_k', 'n', 'seed', 'stop', 'stream', 'stream_options', 'presence_penalty', 'logit_bias'),
    *('user', 'metadata', 'logprobs', 'top_logprobs', 'response_format', 'echo', 'best_of'),
)


def _body(rng: random.Random) -> tuple[bytes, bytes]:
    """Return the path and body of a mostly valid request."""
    is_chat = rng.random() < 0.5
    fields = {'model': 'tiny', 'max_tokens': rng.choice((1, 5))}
    if is_chat:
        fields['messages'] = [{'role': 'user', 'content': _text(rng)}]
    else:
        fields['prompt'] = rng.choice((_text(rng), [_text(rng), 'x']))
    for _ in range(rng.randrange(4)):
        fields[rng.choice(_FIELDS)] = _value(rng)
    body = json.dumps(fields).encode()
    path = b'/v1/chat/completions' if is_chat else b'/v1/completions'
    return path, rng.choice((_as_it_is, _cut, _flipped, _nested))(rng, body)


def _as_it_is(rng: random.Random, body: bytes) -> bytes:
    return body


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def _flipped(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]


def _nested(rng: random.Random, body: bytes) -> bytes:
    mark = rng.choice((b'[', b'{"a":', b'{},', b'"",', b'1,', b'"\\\\",'))
    return b'{"metadata":' + mark * rng.choice((100, 100_000, 900_000))


def _heads(rng: random.Random, path: bytes, body: bytes) -> bytes:
    """Return the head of a request, with a possible error."""
    length = rng.choice((len(body), len(body), len(body), len(body) + 10, 0, -1, 10**30))
    lines = [
        b'%s %s HTTP/1.%d' % (rng.choice((b'POST', b'POST', b'GET', b'X')), path, rng.randrange(2)),
        b'Host: ' + rng.choice((b'localhost', b'127.0.0.1:1', b'[::1]', b'evil', b'', b'\xff')),
        b'Content-Type: ' + rng.choice((b'application/json', b'application/json', b'text/plain')),
        b'Content-Length: %d' % length,
        b'Connection: close',
    ]
    extra = (
        b'Transfer-Encoding: chunked',
        b'Expect: 100-continue',
        b'Upgrade: websocket\r\nConnection: upgrade',
        b'Authorization: Bearer \xff',
        b'X: ' + b'x' * 70_000,
        b'no header',
        b'Content-Length: 5',
    )
    if rng.random() < 0.3:
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(extra))
    return b'\r\n'.join(lines) + b'\r\n\r\n'


def _status_and_body(response: bytes) -> tuple[int, bytes]:
    head, _, body = response.partition(b'\r\n\r\n')
    if b'transfer-encoding: chunked' in head.lower():
        chunks, rest = [], body
        while (size := int(rest.partition(b'\r\n')[0] or b'0', 16)) > 0:
            rest = rest.partition(b'\r\n')[2]
            chunks.append(rest[:size])
            rest = rest[size + 2 :]
        body = b''.join(chunks)
    return int(head.split(b' ')[1]), body


def test_requests_by_hand(address, witness, attempts):
    """Some clients disconnect before they are answered."""
    host, port = address.removeprefix('http://').split(':')
    for rng in attempts(150):
        path, body = _body(rng)
        if rng.random() < 0.2:
            path = rng.choice(_PATHS)
        data = _heads(rng, path, body) + body
        with socket.create_connection((host, int(port)), timeout=1.0) as connection:
            response = b''
            with contextlib.suppress(OSError):  # The server may close it early.
                connection.sendall(data)
                while rng.random() < 0.9 and (part := connection.recv(2**16)):
                    response += part
        # A truncated response belongs to a client that disconnected.
        with contextlib.suppress(ValueError, IndexError):
            if (found := _status_and_body(response))[0] != 100:
                assert found[0] not in _NEVER, (found, data[:2000])
                json.loads(found[1])
                check(*found, data[:2000])

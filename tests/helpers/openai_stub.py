"""A local endpoint that emulates OpenAI's API and its typical failures.

It answers the prompts of dialogues from `ultralink_texts.toml`, and all other prompts with
`StubEndpoint.answer`. The text of an answer depends only on the request. Failures also depend on
the number of earlier attempts at the request.

`python -m tests.helpers.openai_stub` prints the address and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import random
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from aiohttp import web

from malora_jax.ultralink import prompts
from malora_jax.ultralink.languages import get_language
from tests.helpers.paths import FIXTURES

# TRANSPORT failures make one attempt fail; CONTENT failures spoil the answer's text.
TRANSPORT = ('rate_limit', 'error', 'timeout')
CONTENT = ('truncated', 'wrong_language', 'cites', 'malformed')
# A request is answered after this many attempts, so that every client finishes.
MAX_FAILURES = 3


@functools.cache
def texts() -> dict[str, dict[str, Any]]:
    path = FIXTURES / 'ultralink_texts.toml'
    return tomllib.loads(path.read_text('utf-8'))


@functools.cache
def _stages() -> dict[str, tuple[str, str]]:
    """Return the language and stage of the requirements in each dialogue prompt."""
    return {
        prompts.load(language, prompt_set).requirements[stage]: (language, stage)
        for language in texts()
        for prompt_set in get_language(language).prompts
        for stage in prompts.PROMPT_NAMES
    }


def _dialogue_stage(user: str) -> tuple[str, str] | None:
    """Return the language and stage of a user message in a dialogue; None for another message."""
    after_document = user.partition('</document>\n\n')[2]
    return next(
        (found for text, found in _stages().items() if after_document.startswith(text)), None
    )


@dataclasses.dataclass(frozen=True)
class FailurePlan:
    """Failure rates, delays and seed of the endpoint.

    Attributes:
        rates: Share of requests that fail, by the names in `TRANSPORT` and `CONTENT`.
        seed: Random seed that decides which requests fail.
        retry_after: Name and value of the header that a 429 response uses to ask for a delay.
        hang_s: Seconds that a request hangs before it times out.
        latency_s: Maximum latency of an answer in seconds; the minimum is half of it.
        fixed_response: Status, content type and body of the response to every request; None =
            answer as usual.
    """

    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    retry_after: tuple[str, str] = ('retry-after-ms', '10')
    hang_s: float = 2.0
    latency_s: float = 0.0
    fixed_response: tuple[int, str, str] | None = None

    def transport_failure(self, key: str, attempt: int) -> str:
        """Return the name of the failure of an attempt (numbered from 0); '' = none."""
        if attempt >= MAX_FAILURES:
            return ''
        return self._draw_failure(TRANSPORT, f'{key}/{attempt}')

    def content_failure(self, key: str) -> str:
        """Return the name of the failure in the answer's text; '' = none."""
        return self._draw_failure(CONTENT, key)

    def _draw_failure(self, names: tuple[str, ...], what: str) -> str:
        rng = random.Random(f'{self.seed}/{what}')
        weights = [self.rates.get(name, 0.0) for name in names]
        return rng.choices([*names, ''], [*weights, 1 - sum(weights)])[0]


@dataclasses.dataclass
class StubEndpoint:
    """State of the endpoint: received requests and responses. The server thread writes it.

    Attributes:
        plan: Failure plan.
        answer: Function from the request body to the answer, for prompts other than those of
            dialogues.
        address: Base URL of the endpoint.
        attempt_counts: Number of attempts by request key.
        answer_counts: Number of answers by request key.
        failure_counts: Number of responses by name of the failure; '' counts those without one.
        token_counts: Number of tokens in the usage of all answers, by name of the usage field.
        headers: HTTP headers of the last request.
        requests: Request bodies by request key.
    """

    plan: FailurePlan
    answer: Callable[[dict[str, Any]], str]
    address: str = ''
    attempt_counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    answer_counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failure_counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    token_counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the paths of the API to a server."""
        router.add_post('/v1/chat/completions', self.complete)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Handle POST /v1/chat/completions."""
        body = json.loads(await request.read())
        key = request_key(body)
        attempt = self.attempt_counts[key]
        self.attempt_counts[key] += 1
        self.requests[key] = body
        self.headers = dict(request.headers)
        if self.plan.fixed_response:
            status, kind, text = self.plan.fixed_response
            return web.Response(status=status, content_type=kind, text=text)
        failure = self.plan.transport_failure(key, attempt)
        self.failure_counts[failure] += 1
        if failure == 'rate_limit':
            return _error(429, 'Too many requests.', dict([self.plan.retry_after]))
        if failure == 'error':
            return _error(500, 'Something broke.', {})
        if failure == 'timeout':
            await asyncio.sleep(self.plan.hang_s)
            return _error(504, 'Too late.', {})
        if self.plan.latency_s:
            share = random.Random(key).uniform(0.5, 1.0)
            await asyncio.sleep(share * self.plan.latency_s)
        content = self.plan.content_failure(key)
        self.failure_counts[content] += 1
        self.answer_counts[key] += 1
        return web.json_response(self.completion(body, key, content))

    def completion(self, body: dict[str, Any], key: str, fault: str) -> dict[str, Any]:
        """Return the response to a request, with a fault or without ('')."""
        known = _dialogue_stage(body['messages'][-1]['content'])
        text = dialogue_text(*known, key, fault) if known else self.answer(body)
        if fault == 'truncated':
            text = text[: len(text) // 2]
        prompt = sum(len(message['content']) for message in body['messages']) // 4
        choice = {
            'index': 0,
            'message': {'role': 'assistant', 'content': text},
            'finish_reason': 'length' if fault == 'truncated' else 'stop',
        }
        usage = {'prompt_tokens': prompt, 'completion_tokens': len(text) // 4}
        self.token_counts.update(usage)
        return {
            'id': key,
            'object': 'chat.completion',
            'created': 0,
            'model': body['model'],
            'choices': [] if fault == 'malformed' else [choice],
            'usage': {**usage, 'total_tokens': sum(usage.values())},
        }


# Type of the stub that is served.
Stub = TypeVar('Stub', bound=StubEndpoint)


def request_key(body: dict[str, Any]) -> str:
    """Return the request key: a hash of the body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def dialogue_text(language: str, stage: str, key: str, fault: str = '') -> str:
    """Return the question or answer that the stub gives to a request of a dialogue stage.

    Args:
        language: Language of the prompt.
        stage: Stage of the dialogue; its name ends with "answer" if an answer is asked for.
        key: Request key, which seeds the choice.
        fault: Name of a fault in `CONTENT`; '' = none.
    """
    rng = random.Random(key)
    if fault == 'wrong_language':
        language = rng.choice([other for other in texts() if other != language])
    kind = 'answers' if stage.endswith('answer') else 'questions'
    text = rng.choice(texts()[language][kind])
    return f'{texts()[language]["cites"]} {text}' if fault == 'cites' else text


def document(language: str, number: int, lines: int = 12) -> dict[str, str]:
    """Return a distinct document: a language's answers, sampled and shuffled."""
    of_language = texts()[language]
    chosen = random.Random(f'{language}/{number}').sample(of_language['answers'], lines)
    return {
        'id': str(number),
        'title': f'{of_language["title"]} {number}',
        'text': '\n'.join(chosen),
    }


def _error(status: int, message: str, headers: dict[str, str]) -> web.Response:
    error = {'message': message, 'type': 'stub', 'code': None}
    return web.json_response({'error': error}, status=status, headers=headers)


@contextlib.contextmanager
def serve_stub(
    plan: FailurePlan | None = None, answer: Callable[[dict[str, Any]], str] = lambda body: 'Yes.'
) -> Iterator[StubEndpoint]:
    """Serve a stub in a thread, and yield it."""
    with serve(StubEndpoint(plan or FailurePlan(), answer)) as stub:
        yield stub


@contextlib.contextmanager
def serve(stub: Stub) -> Iterator[Stub]:
    """Serve a given stub in a thread, and yield it."""
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(_start_server(stub))
    thread = threading.Thread(target=loop.run_forever, name='stub')
    thread.start()
    try:
        yield stub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _start_server(stub: StubEndpoint) -> web.AppRunner:
    app = web.Application(client_max_size=1 << 24)
    stub.add_routes(app.router)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0)
    await site.start()
    stub.address = f'http://127.0.0.1:{runner.addresses[0][1]}/v1'
    return runner


if __name__ == '__main__':
    with serve_stub() as served:
        print(served.address, flush=True)
        threading.Event().wait()

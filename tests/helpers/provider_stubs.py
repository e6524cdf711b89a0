"""Stubs of providers that reject parameters, reason aloud, fail softly, or offer a batch API.

Each of them counts what it would bill: requests, tokens and cost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tests.helpers.openai_stub import StubEndpoint, request_key

# Prices in US dollars per million tokens, and the same prices as a file of the user.
PROMPT_PRICE, COMPLETION_PRICE, CACHED_PRICE = 2.0, 8.0, 0.5
PRICES = f"""\
[m]
prompt = {PROMPT_PRICE}
completion = {COMPLETION_PRICE}
cached_prompt = {CACHED_PRICE}
"""
THOUGHT = 'Let me think. Perhaps I should first consider the document.'


@dataclasses.dataclass
class Provider(StubEndpoint):
    """A stub that counts what it bills.

    Attributes:
        sent: Number of received requests, including those that fail.
        billed: Number of billed requests, prompt tokens, completion tokens and cached tokens.
        arrivals: Time of arrival and billed tokens of each received request.
    """

    sent: int = 0
    billed: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0, 0])
    arrivals: list[list[float]] = dataclasses.field(default_factory=list)

    @property
    def cost(self) -> float:
        _, prompt, completion, cached = self.billed
        full = (prompt - cached) * PROMPT_PRICE + cached * CACHED_PRICE
        return (full + completion * COMPLETION_PRICE) / 1e6

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.sent += 1
        self.arrivals.append([time.monotonic(), 0])
        number = len(self.arrivals) - 1
        body = json.loads(await request.read())
        rejected = self.reject(body)
        if rejected:
            return rejected
        response = await super().complete(request)
        if isinstance(response, web.Response) and response.status == 200:
            self.arrivals[number][1] = self.bill(json.loads(response.text or ''))
        return response

    def reject(self, body: dict[str, Any]) -> web.Response | None:
        """Return the response to a request whose parameters are not accepted; None = accepted."""
        return None

    def bill(self, completion: dict[str, Any], times: int = 1) -> int:
        """Count a completion, or take it back (-1), and return its number of tokens."""
        usage = completion['usage']
        cached = usage.get('prompt_tokens_details', {}).get('cached_tokens', 0)
        counts = (1, usage['prompt_tokens'], usage['completion_tokens'], cached)
        self.billed = [old + times * new for old, new in zip(self.billed, counts, strict=True)]
        return usage['total_tokens']


class ReasoningProvider(Provider):
    """A provider as OpenAI with its reasoning models; it caches the prefix with the document."""

    def reject(self, body: dict[str, Any]) -> web.Response | None:
        for name in ('max_tokens', 'temperature', 'top_p', 'seed'):
            if name in body:
                hint = " Use 'max_completion_tokens' instead." if name == 'max_tokens' else ''
                message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
                error = {'message': message, 'type': 'invalid_request_error', 'param': name}
                return web.json_response({'error': {**error, 'code': None}}, status=400)
        return None

    def completion(self, body: dict[str, Any], key: str, fault: str) -> dict[str, Any]:
        completion = super().completion(body, key, fault)
        usage = completion['usage']
        usage['completion_tokens'] += 50
        usage['total_tokens'] += 50
        usage['completion_tokens_details'] = {'reasoning_tokens': 50}
        # The system message and the document are cached from the second request on.
        prefix = json.dumps(body['messages']).partition('</document>')[0]
        seen = self.__dict__.setdefault('prefixes', set())
        cached = min(len(prefix) // 4, usage['prompt_tokens']) if prefix in seen else 0
        seen.add(prefix)
        usage['prompt_tokens_details'] = {'cached_tokens': cached}
        return completion


class ThinkingProvider(Provider):
    """A provider as vLLM with a model whose replies begin with a <think> section."""

    # Number of tokens after which a reply is cut off.
    max_tokens = 10**6

    def completion(self, body: dict[str, Any], key: str, fault: str) -> dict[str, Any]:
        completion = super().completion(body, key, fault)
        if not completion['choices'] or not self.thinks(body):
            return completion
        [choice] = completion['choices']
        text = f'<think>\n{THOUGHT}\n</think>\n\n{choice["message"]["content"]}'
        if len(text) // 4 > self.max_tokens:
            text, choice['finish_reason'] = text[: 4 * self.max_tokens], 'length'
        choice['message']['content'] = text
        usage = completion['usage']
        usage['completion_tokens'] = len(text) // 4
        usage['total_tokens'] = usage['prompt_tokens'] + usage['completion_tokens']
        return completion

    def thinks(self, body: dict[str, Any]) -> bool:
        return body.get('chat_template_kwargs', {}).get('enable_thinking', True)


class MistralProvider(Provider):
    """A provider as Mistral: unknown parameters are rejected with status 422."""

    def reject(self, body: dict[str, Any]) -> web.Response | None:
        if 'seed' not in body:
            return None
        fault = {'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'input': body['seed']}
        detail = [{**fault, 'msg': 'Extra inputs are not permitted'}]
        content = {'object': 'error', 'message': {'detail': detail}, 'code': None}
        return web.json_response(content, status=422)


@dataclasses.dataclass
class Gateway(Provider):
    """A gateway that fails softly.

    Attributes:
        soft_rates: Share of responses with status 200 that are an error ('error'), that are not
            complete JSON ('cut'), or that break off ('broken'). The gateway bills the last two.
        answered: Number of responses with status 200 so far. The failure of a response depends on
            it, so that responses to concurrent requests do not all fail together.
    """

    soft_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    answered: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        response = await super().complete(request)
        if not isinstance(response, web.Response) or response.status != 200:
            return response
        self.answered += 1
        rng = random.Random(f'{self.plan.seed}/soft/{self.answered}')
        names = list(self.soft_rates)
        rates = [self.soft_rates[name] for name in names]
        failure = rng.choices([*names, ''], [*rates, 1 - sum(rates)])[0]
        if not failure:
            return response
        self.failure_counts[failure] += 1
        self.answer_counts[request_key(json.loads(await request.read()))] -= 1
        if failure == 'error':
            self.bill(json.loads(response.text or ''), -1)
            error = {'message': 'Upstream error from provider.', 'code': 503}
            return web.json_response({'error': error})
        text = (response.text or '').encode()
        if failure == 'cut':
            return web.Response(body=text[: len(text) // 2], content_type='application/json')
        broken = web.StreamResponse(headers={'content-length': str(len(text))})
        broken.content_type = 'application/json'
        await broken.prepare(request)
        await broken.write(text[: len(text) // 2])
        assert request.transport
        request.transport.close()
        return broken


@dataclasses.dataclass
class BatchProvider(Provider):
    """A provider with OpenAI's batch API.

    Attributes:
        seconds: Time that a batch takes.
        fail_rate: Share of requests that fail within a batch.
        lose_rate: Share of created batches whose response does not arrive.
        files: Content of each file by id.
        batches: Batches by id.
    """

    seconds: float = 0.3
    fail_rate: float = 0.0
    lose_rate: float = 0.0
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        super().add_routes(router)
        router.add_post('/v1/files', self.upload)
        router.add_get('/v1/files/{id}/content', self.download)
        router.add_post('/v1/batches', self.create)
        router.add_get('/v1/batches', self.list)
        router.add_get('/v1/batches/{id}', self.retrieve)

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form['purpose'] == 'batch'
        file = f'file-{len(self.files)}'
        self.files[file] = form['file'].file.read()
        return web.json_response({'id': file, 'object': 'file', 'purpose': 'batch'})

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info['id']])

    async def create(self, request: web.Request) -> web.StreamResponse:
        fields = await request.json()
        assert (fields['endpoint'], fields['completion_window']) == ('/v1/chat/completions', '24h')
        batch = f'batch-{len(self.batches)}'
        rng = random.Random(f'{self.plan.seed}/{batch}')
        lines: dict[str, list[dict[str, Any]]] = {'output': [], 'error': []}
        for text in self.files[fields['input_file_id']].decode().split('\n')[:-1]:
            line = json.loads(text)
            failed = rng.random() < self.fail_rate
            response = self._respond(line['body'], failed)
            answered = {'custom_id': line['custom_id'], 'response': response, 'error': None}
            lines['error' if failed else 'output'].append(answered)
        found = {'id': batch, 'object': 'batch', 'metadata': fields['metadata']}
        for name, rows in lines.items():
            found[f'{name}_file_id'] = f'{batch}-{name}' if rows else None
            content = ''.join(json.dumps(row) + '\n' for row in rows)
            self.files[f'{batch}-{name}'] = content.encode()
        self.batches[batch] = {**found, 'ends': time.monotonic() + self.seconds}
        await asyncio.sleep(0.05)
        if rng.random() < self.lose_rate:
            assert request.transport
            request.transport.close()
        return web.json_response(self._state(batch))

    def _respond(self, body: dict[str, Any], failed: bool) -> dict[str, Any]:
        """Return the response to a request of a batch, and bill it unless it fails."""
        self.sent += 1
        key = request_key(body)
        self.attempt_counts[key] += 1
        self.requests[key] = body
        if failed:
            return {'status_code': 500, 'body': {'error': {'message': 'Something broke.'}}}
        self.answer_counts[key] += 1
        completion = self.completion(body, key, self.plan.content_failure(key))
        self.bill(completion)
        return {'status_code': 200, 'body': completion}

    async def list(self, request: web.Request) -> web.Response:
        data = [self._state(batch) for batch in reversed(self.batches)]
        return web.json_response({'object': 'list', 'data': data, 'has_more': False})

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._state(request.match_info['id']))

    def _state(self, batch: str) -> dict[str, Any]:
        state = dict(self.batches[batch])
        if time.monotonic() < state.pop('ends'):
            files = {'output_file_id': None, 'error_file_id': None}
            return {**state, **files, 'status': 'in_progress'}
        return {**state, 'status': 'completed'}

"""The endpoint: OpenAI's chat and text completions, and the list of models."""

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import fastapi
import jax
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from malora_jax.errors import UserError
from malora_jax.inference import LanguageModel
from malora_jax.models.engine import Request
from malora_jax.serving import answers
from malora_jax.serving.answers import Piece
from malora_jax.serving.protocol import ChatRequest, CompletionRequest
from malora_jax.serving.scheduler import FailedError, OverloadedError, Scheduler

# Bytes of a request.
MOST_BYTES = 4 * 2**20
# What a chat may take where the request does not say, if the context has room for it.
_MOST_TOKENS = 1024


class RefusedError(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_app(
    models: Mapping[str, LanguageModel],
    *,
    rows: int = 8,
    most_waiting: int = 256,
    timeout_s: float = 600.0,
    key: str | None = None,
) -> fastapi.FastAPI:
    """The ASGI application.

    Args:
        models: by the names that requests give.
        rows: texts of each model that are written side by side.
        most_waiting: requests that may wait; those after them are answered by status 429.
        timeout_s: after so many seconds a request is given up, with status 504 if nothing was sent.
        key: what requests must bear, if anything.
    """
    scheduler = Scheduler(models, rows, most_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)

    app = fastapi.FastAPI(title='malora_jax', lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_Limits, key=key)
    _handle_errors(app)
    service = _Service(models, scheduler, timeout_s)
    app.get('/health')(service.health)
    app.get('/v1/models')(service.list_models)
    app.post('/v1/chat/completions')(service.chat)
    app.post('/v1/completions')(service.complete)
    return app


class _Limits:
    """Refuses what does not bear the key, or is too large, before it is looked at."""

    def __init__(self, app: ASGIApp, key: str | None):
        self.app = app
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        headers = dict(scope['headers'])
        if self.key is not None and scope['path'] != '/health':
            expected = f'Bearer {self.key}'.encode()
            if not hmac.compare_digest(headers.get(b'authorization', b''), expected):
                refusal = _error(401, 'The request does not bear the right key.')
                await refusal(scope, receive, send)
                return
        length = headers.get(b'content-length', b'')
        if length.isdigit() and int(length) > MOST_BYTES:
            await _too_large()(scope, receive, send)
            return
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get('body', b''))
            if total > MOST_BYTES:
                raise fastapi.HTTPException(413)
            return message

        await self.app(scope, counted, send)


class _Service:
    """What is done for each path."""

    def __init__(self, models: Mapping[str, LanguageModel], scheduler: Scheduler, timeout_s: float):
        self.models = models
        self.scheduler = scheduler
        self.timeout_s = timeout_s
        self.started = int(time.time())

    async def health(self) -> dict[str, Any]:
        """Whether the server answers, and how much it has to do."""
        return {'status': 'ok', 'open_requests': self.scheduler.open_requests}

    async def list_models(self) -> dict[str, Any]:
        """The names that requests may give."""
        data = [
            {'id': name, 'object': 'model', 'created': self.started, 'owned_by': 'malora_jax'}
            for name in self.models
        ]
        return {'object': 'list', 'data': data}

    async def chat(self, body: ChatRequest, http: fastapi.Request) -> Response:
        """POST /v1/chat/completions."""
        model = self._model(body.model)
        prompt = model.prompt([message.plain() for message in body.messages])
        limit = body.limit
        if limit is None:
            limit = max(1, min(_MOST_TOKENS, model.model.config.context - len(prompt)))

        def choice(piece: Piece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            # White space before an answer is of the template; see `LanguageModel.chat`.
            text = piece.text if offset else piece.text.lstrip()
            logprobs = answers.chat_logprobs(model, piece.tokens, body.alternatives)
            role = {'role': 'assistant'} if not (is_stream and offset) else {}
            what = {**role, 'content': text if is_stream else text.strip()}
            return {
                'index': index,
                'delta' if is_stream else 'message': what,
                'logprobs': logprobs,
                'finish_reason': piece.finish,
            }

        return await self._respond(
            body, http, model, [prompt], limit, choice, 'chat.completion', 'chatcmpl'
        )

    async def complete(self, body: CompletionRequest, http: fastapi.Request) -> Response:
        """POST /v1/completions."""
        model = self._model(body.model)
        prompts = [model.tokens(text) for text in body.prompts]
        if not all(prompts):
            raise RefusedError(422, 'prompt: There must be a text to go on from.')

        def choice(piece: Piece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            return {
                'index': index,
                'text': piece.text,
                'logprobs': answers.completion_logprobs(
                    model, piece.tokens, body.alternatives, offset
                ),
                'finish_reason': piece.finish,
            }

        return await self._respond(
            body, http, model, prompts, body.limit, choice, 'text_completion', 'cmpl'
        )

    def _model(self, name: str) -> LanguageModel:
        if name not in self.models:
            raise RefusedError(
                404, f'There is no model {name!r}; there is {", ".join(self.models)}.'
            )
        return self.models[name]

    async def _respond(
        self,
        body: ChatRequest | CompletionRequest,
        http: fastapi.Request,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        limit: int,
        choice: Callable[[Piece, int, int, bool], dict[str, Any]],
        kind: str,
        prefix: str,
    ) -> Response:
        texts = self._begin(body, model, prompts, limit)
        head = {
            'id': f'{prefix}-{uuid.uuid4().hex}',
            'object': kind,
            'created': int(time.time()),
            'model': body.model,
        }
        if body.stream:
            head['object'] = kind if kind == 'text_completion' else f'{kind}.chunk'
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(texts, head, choice, prompts, with_usage, self.timeout_s)
            return StreamingResponse(events, media_type='text/event-stream')
        gathered = asyncio.gather(*(answers.whole(text) for text in texts))
        found = await _unless_gone(gathered, http, self.timeout_s)
        choices = [choice(piece, i, 0, False) for i, piece in enumerate(found)]
        usage = _usage(prompts, [len(piece.tokens) for piece in found])
        return JSONResponse(head | {'choices': choices, 'usage': usage})

    def _begin(
        self,
        body: ChatRequest | CompletionRequest,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        limit: int,
    ) -> list[AsyncIterator[Piece]]:
        """Submits `n` texts for each prompt."""
        seed = uuid.uuid4().int % 2**31 if body.seed is None else body.seed % 2**31
        tickets = []
        try:
            for number, prompt in enumerate(p for p in prompts for _ in range(body.n)):
                request = Request(
                    prompt,
                    limit,
                    body.temperature,
                    body.top_k,
                    body.top_p,
                    jax.random.fold_in(jax.random.key(seed), number),
                    bool(body.alternatives),
                )
                tickets.append(self.scheduler.submit(body.model, request))
        except (UserError, OverloadedError) as error:
            for ticket in tickets:
                self.scheduler.cancel(ticket)
            if isinstance(error, OverloadedError):
                raise RefusedError(
                    429, 'Too many requests wait already; try again later.'
                ) from error
            raise RefusedError(413, str(error)) from error
        return [answers.pieces(self.scheduler, model, t, body.stops) for t in tickets]


async def _unless_gone(
    work: 'asyncio.Future[list[Piece]]', http: fastapi.Request, timeout_s: float
) -> list[Piece]:
    """The result of the work, which is given up when the client goes away or time is out."""
    gone = asyncio.ensure_future(_disconnected(http))
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        done, _ = await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        if gone in done:
            raise RefusedError(499, 'The client is gone.')
        raise RefusedError(504, f'The answer took more than {timeout_s:g} seconds.')
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _disconnected(http: fastapi.Request) -> None:
    while (await http.receive())['type'] != 'http.disconnect':
        pass


async def _events(
    texts: Sequence[AsyncIterator[Piece]],
    head: Mapping[str, Any],
    choice: Callable[[Piece, int, int, bool], dict[str, Any]],
    prompts: Sequence[list[int]],
    with_usage: bool,
    timeout_s: float,
) -> AsyncIterator[str]:
    """Server-sent events: a chunk for each piece of any text, as it comes."""
    queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()

    async def listen(index: int, text: AsyncIterator[Piece]) -> None:
        try:
            async for piece in text:
                queue.put_nowait((index, piece))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.ensure_future(listen(i, text)) for i, text in enumerate(texts)]
    counts, offsets, running = [0] * len(texts), [0] * len(texts), len(texts)
    try:
        async with asyncio.timeout(timeout_s):
            while running:
                index, piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                chunk = choice(piece, index, offsets[index], True)
                counts[index] += len(piece.tokens)
                offsets[index] += len(piece.text)
                running -= piece.finish is not None
                yield _event(dict(head) | {'choices': [chunk]})
        if with_usage:
            yield _event(dict(head) | {'choices': [], 'usage': _usage(prompts, counts)})
    except TimeoutError:
        yield _event(_body(504, f'The answer took more than {timeout_s:g} seconds.'))
    except FailedError:
        yield _event(_body(500, 'The model failed; the log says why.'))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    yield 'data: [DONE]\n\n'


def _event(value: Mapping[str, Any]) -> str:
    return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


def _usage(prompts: Sequence[list[int]], written: Sequence[int]) -> dict[str, int]:
    before, after = sum(map(len, prompts)), sum(written)
    return {
        'prompt_tokens': before,
        'completion_tokens': after,
        'total_tokens': before + after,
    }


def _handle_errors(app: fastapi.FastAPI) -> None:
    """Every error as OpenAI's clients expect it."""

    @app.exception_handler(RefusedError)
    async def refused(_: fastapi.Request, error: RefusedError) -> Response:
        return _error(error.status, str(error))

    @app.exception_handler(UserError)
    async def mistaken(_: fastapi.Request, error: UserError) -> Response:
        return _error(422, str(error))

    @app.exception_handler(FailedError)
    async def failed(_: fastapi.Request, error: FailedError) -> Response:
        return _error(500, 'The model failed; the log says why.')

    @app.exception_handler(RequestValidationError)
    async def invalid(_: fastapi.Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc'] if part != 'body')
        return _error(422, f'{where or "The body"}: {first["msg"]}.')

    @app.exception_handler(fastapi.HTTPException)
    async def other(_: fastapi.Request, error: fastapi.HTTPException) -> Response:
        return _too_large() if error.status_code == 413 else _error(error.status_code, error.detail)


def _too_large() -> JSONResponse:
    return _error(413, f'A request may have {MOST_BYTES:,} bytes.')


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(_body(status, message), status)


def _body(status: int, message: str) -> dict[str, Any]:
    kind = 'invalid_request_error' if status < 500 else 'server_error'
    return {'error': {'message': message, 'type': kind, 'param': None, 'code': status}}

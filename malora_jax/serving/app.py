"""The ASGI application: OpenAI's chat and text completions, and the list of models."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import fastapi
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response, StreamingResponse
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from malora_jax.errors import UserError
from malora_jax.inference import LanguageModel
from malora_jax.models.engine import GenerationRequest, check_context_length
from malora_jax.serving import answers, protocol
from malora_jax.serving.errors import RefusedError
from malora_jax.serving.guard import Guard
from malora_jax.serving.protocol import ChatRequest, CompletionRequest, SomeRequest
from malora_jax.serving.responses import ErrorBody, handle_errors
from malora_jax.serving.scheduler import Generation, Piece, Scheduler
from malora_jax.serving.workers import Workers

# Default maximum number of new tokens in a chat, if the context has room for them.
_MOST_TOKENS = 1024

_Result = TypeVar('_Result')


def make_app(
    models: Mapping[str, LanguageModel],
    *,
    rows: int = 8,
    most_waiting: int = 256,
    timeout_s: float = 600.0,
    body_s: float = 30.0,
    key: str | None = None,
    hosts: Collection[str] = (),
) -> fastapi.FastAPI:
    """Return the ASGI application; `app.state.scheduler` is its `Scheduler`.

    For example:

        app = make_app({'malora': malora_jax.load('runs/malora')}, key='secret')

    Args:
        models: Models by the names that requests use.
        rows: Number of texts of each model that are decoded together (batch size). The memory for
            the KV cache grows with it.
        most_waiting: Maximum number of queued texts; further requests get status 429.
        timeout_s: Maximum time of a request in seconds; then it gets status 504, or an error event
            if streaming has started.
        body_s: Maximum time in seconds for the body of a request to arrive.
        key: API key that requests must have, or None.
        hosts: Host names that requests may use, besides IP addresses and `localhost`; ignored with
            a key.
    """
    scheduler, workers = Scheduler(models, rows, most_waiting), Workers()

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)
        workers.close()

    app = fastapi.FastAPI(
        title='malora_jax',
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={code: {'model': ErrorBody} for code in ('4XX', '5XX')},
    )
    app.state.scheduler = scheduler
    app.add_middleware(
        Guard, key=key, hosts=hosts, body_s=body_s, is_draining=lambda: scheduler.is_draining
    )
    handle_errors(app)
    service = _Service(models, scheduler, workers, timeout_s)
    app.get('/health')(service.health)
    app.get('/v1/models')(service.list_models)
    app.get('/v1/models/{name:path}')(service.get_model)
    app.post('/v1/chat/completions', openapi_extra=_body(ChatRequest))(service.chat)
    app.post('/v1/completions', openapi_extra=_body(CompletionRequest))(service.complete)
    app.openapi = functools.cache(functools.partial(_openapi, app))  # type: ignore[method-assign]
    return app


_REFERENCE = '#/components/schemas/{model}'


def _body(kind: type[ChatRequest | CompletionRequest]) -> dict[str, Any]:
    schema = {'$ref': _REFERENCE.format(model=kind.__name__)}
    content = {'application/json': {'schema': schema}}
    return {'requestBody': {'content': content, 'required': True}}


def _openapi(app: fastapi.FastAPI) -> dict[str, Any]:
    """Return the OpenAPI schema, including the request bodies that `protocol.parse` reads."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = [(kind, 'validation') for kind in (ChatRequest, CompletionRequest)]
    _, bodies = models_json_schema(kinds, ref_template=_REFERENCE)  # type: ignore[arg-type]
    schema['components']['schemas'].update(bodies['$defs'])
    return schema


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A prompt that is not yet tokenized.

    Attributes:
        size: Number of characters.
        tokens: Function that tokenizes the prompt, which takes long if the prompt is long.
    """

    size: int
    tokens: Callable[[], list[int]]


class _Service:
    """The handlers of the HTTP paths."""

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        scheduler: Scheduler,
        workers: Workers,
        timeout_s: float,
    ):
        self.models = models
        self.scheduler = scheduler
        self.workers = workers
        self.timeout_s = timeout_s
        self.started = int(time.time())

    async def health(self) -> dict[str, Any]:
        """Report that the server is running, and how many texts it generates or has queued."""
        return {'status': 'ok', 'open_requests': self.scheduler.open_requests}

    async def list_models(self) -> dict[str, Any]:
        """List the names of the models."""
        return {'object': 'list', 'data': [self._describe(name) for name in self.models]}

    async def get_model(self, name: str) -> dict[str, Any]:
        """Return the description of one model.

        Raises:
            RefusedError: There is no model with this name.
        """
        self._model(name)
        return self._describe(name)

    async def chat(self, http: fastapi.Request) -> Response:
        """Answer a request to POST /v1/chat/completions.

        Raises:
            RefusedError: The request is invalid or cannot be completed.
        """
        body = await self._read(ChatRequest, http)
        model = self._model(body.model)
        messages = [message.plain() for message in body.messages]
        size = sum(len(message['content']) for message in messages)
        prompt = _Prompt(size, functools.partial(model.encode_prompt, messages))

        def choice(piece: Piece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            # White space before an answer belongs to the template; see `LanguageModel.chat`.
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
            body, http, [prompt], 'messages', choice, 'chat.completion', 'chatcmpl'
        )

    async def complete(self, http: fastapi.Request) -> Response:
        """Answer a request to POST /v1/completions.

        Raises:
            RefusedError: The request is invalid or cannot be completed.
        """
        body = await self._read(CompletionRequest, http)
        model = self._model(body.model)
        prompts = [
            _Prompt(len(text), functools.partial(model.encode_text, text)) for text in body.prompts
        ]

        def choice(piece: Piece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            return {
                'index': index,
                'text': piece.text,
                'logprobs': answers.completion_logprobs(
                    model, piece.tokens, body.alternatives, offset
                ),
                'finish_reason': piece.finish,
            }

        return await self._respond(body, http, prompts, 'prompt', choice, 'text_completion', 'cmpl')

    async def _read(self, kind: type[SomeRequest], http: fastapi.Request) -> SomeRequest:
        try:
            raw = await http.body()
        except ClientDisconnect:
            raise RefusedError(499, 'The client is gone.') from None
        content_type = http.headers.get('content-type', '').partition(';')[0].strip().lower()
        if content_type != 'application/json':
            # Browsers let any web page send other content types to any server, without CORS checks.
            raise RefusedError(422, 'The body must have the content type application/json.')
        return await self.workers.run(len(raw), functools.partial(protocol.parse, kind, raw))

    def _model(self, name: str) -> LanguageModel:
        if name not in self.models:
            known = ', '.join(self.models)
            raise RefusedError(404, f'There is no model {name[:256]!r}; there is {known}.', 'model')
        return self.models[name]

    def _describe(self, name: str) -> dict[str, Any]:
        return {'id': name, 'object': 'model', 'created': self.started, 'owned_by': 'malora_jax'}

    async def _respond(
        self,
        body: ChatRequest | CompletionRequest,
        http: fastapi.Request,
        prompts: Sequence[_Prompt],
        field: str,
        choice: Callable[[Piece, int, int, bool], dict[str, Any]],
        kind: str,
        prefix: str,
    ) -> Response:
        model = self.models[body.model]
        for prompt in prompts:
            if prompt.size > model.max_characters:
                raise RefusedError(
                    413,
                    f'{field}: {prompt.size:,} characters do not fit into the context of '
                    f'{model.model.config.context} tokens, which has at most '
                    f'{model.max_characters:,}.',
                    field,
                )
        head = {
            'id': f'{prefix}-{uuid.uuid4().hex}',
            'object': kind,
            'created': int(time.time()),
            'model': body.model,
        }
        deadline = _Deadline(self.timeout_s)
        generation = self.scheduler.open(body.model, len(prompts) * body.n)
        try:
            begin = self._begin(body, generation, prompts, field)
            count = await deadline.unless_gone(begin, http)
            if body.stream:
                head['object'] = kind if kind == 'text_completion' else f'{kind}.chunk'
                events = _events(body, generation, head, choice, count, deadline)
                cancel = functools.partial(self.scheduler.cancel, generation)
                return _EventStream(events, cancel)
            found = await deadline.unless_gone(answers.whole(generation), http)
        except BaseException:
            self.scheduler.cancel(generation)
            raise

        tokens = sum(len(piece.tokens) for piece in found)

        def encoded() -> bytes:
            choices = [choice(piece, i, 0, False) for i, piece in enumerate(found)]
            value = head | {'choices': choices, 'usage': _usage(count, tokens)}
            return ''.join(answers.encode(value)).encode()

        content = await self.workers.run(tokens * (1 + (body.alternatives or 0)), encoded)
        return Response(content, media_type='application/json')

    async def _begin(
        self,
        body: ChatRequest | CompletionRequest,
        generation: Generation,
        prompts: Sequence[_Prompt],
        field: str,
    ) -> int:
        """Submit `n` texts for each prompt, and return the total number of prompt tokens."""
        seed = uuid.uuid4().int % 2**31 if body.seed is None else body.seed % 2**31
        count = 0
        for number, prompt in enumerate(prompts):
            # Tokenize one prompt at a time, so that requests with many prompts do not delay others.
            request = await self.workers.run(
                prompt.size, functools.partial(self._request, body, prompt, field)
            )
            for text in generation.texts[number * body.n : (number + 1) * body.n]:
                self.scheduler.submit(text, request, body.stops, seed)
            count += len(request.prompt)
        return count

    def _request(
        self, body: ChatRequest | CompletionRequest, prompt: _Prompt, field: str
    ) -> GenerationRequest:
        """Return the engine's request for each text of a prompt; runs in a worker thread.

        Raises:
            RefusedError: The prompt has no tokens, or does not fit into the context with its
                answer.
            UserError: The template does not support the messages.
        """
        model = self.models[body.model]
        tokens, context = prompt.tokens(), model.model.config.context
        if not tokens:
            raise RefusedError(422, f'{field}: There must be a text to go on from.', field)
        limit = body.limit
        if limit is None:
            limit = max(1, min(_MOST_TOKENS, context - len(tokens)))
        try:
            check_context_length(model.model.config, len(tokens), limit)
        except UserError as error:
            raise RefusedError(413, str(error), field) from error
        return GenerationRequest(
            tokens,
            limit,
            body.temperature,
            body.top_k,
            body.top_p,
            wants_logprobs=bool(body.alternatives),
        )


class _EventStream(StreamingResponse):
    """A response of server-sent events, whose generation is cancelled if the client disconnects."""

    def __init__(self, events: AsyncIterator[str], cancel: Callable[[], None]):
        super().__init__(events, media_type='text/event-stream')
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as an ASGI application, and cancel unfinished work at the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


class _Deadline:
    """The deadline of a request.

    Attributes:
        at: Time of the event loop's clock at which the request is abandoned, in seconds.
        error: Error that the client then gets.
    """

    def __init__(self, timeout_s: float):
        self.at = asyncio.get_running_loop().time() + timeout_s
        self.error = RefusedError(504, f'The answer took more than {timeout_s:g} seconds.')

    async def unless_gone(
        self, work: Coroutine[Any, Any, _Result], http: fastapi.Request
    ) -> _Result:
        """Return the result of the work; cancel it if the client disconnects or time runs out.

        Args:
            work: Coroutine that computes the result.
            http: HTTP request whose connection is watched.

        Raises:
            RefusedError: The work was cancelled.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(http))
        both: set[asyncio.Future[Any]] = {task, gone}
        try:
            async with asyncio.timeout_at(self.at):
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise self.error from None
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if task in done:
            return task.result()
        raise RefusedError(499, 'The client is gone.')


async def _disconnected(http: fastapi.Request) -> None:
    while (await http.receive())['type'] != 'http.disconnect':
        pass


async def _events(
    body: ChatRequest | CompletionRequest,
    generation: Generation,
    head: Mapping[str, Any],
    choice: Callable[[Piece, int, int, bool], dict[str, Any]],
    prompt_tokens: int,
    deadline: _Deadline,
) -> AsyncIterator[str]:
    """Yield the events of a streamed response: a chunk for each piece, or an error, then [DONE].

    Args:
        body: Request.
        generation: Texts of the request.
        head: Fields that all chunks have.
        choice: Function that converts a piece, with the index of its text, the number of characters
            before it, and whether the response is streamed, to an entry of `choices`.
        prompt_tokens: Number of tokens of all prompts, for the usage.
        deadline: Deadline of the request.
    """
    tokens, offsets = 0, [0] * len(generation.texts)
    try:
        async with asyncio.timeout_at(deadline.at):
            async for index, piece in generation.pieces():
                chunk = choice(piece, index, offsets[index], True)
                tokens += len(piece.tokens)
                offsets[index] += len(piece.text)
                yield _event(dict(head) | {'choices': [chunk]})
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event(dict(head) | {'choices': [], 'usage': _usage(prompt_tokens, tokens)})
    except TimeoutError:
        yield _event(deadline.error.body())
    except RefusedError as error:
        yield _event(error.body())
    yield 'data: [DONE]\n\n'


def _event(value: Mapping[str, Any]) -> str:
    return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


def _usage(before: int, after: int) -> dict[str, int]:
    return {
        'prompt_tokens': before,
        'completion_tokens': after,
        'total_tokens': before + after,
    }

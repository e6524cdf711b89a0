"""The ASGI application: OpenAI's chat and text completions, and the list of models."""

import asyncio
import contextlib
import dataclasses
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import fastapi
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

from malora_jax.errors import UserError
from malora_jax.inference import LanguageModel
from malora_jax.models.engine import GenerationRequest, check_context_length
from malora_jax.serving import event_stream, protocol, response_json
from malora_jax.serving.deadline import Deadline
from malora_jax.serving.error_responses import ErrorBody, add_error_handlers
from malora_jax.serving.errors import ApiError
from malora_jax.serving.event_stream import EventStream
from malora_jax.serving.generation import Generation, TextPiece
from malora_jax.serving.middleware import GuardMiddleware
from malora_jax.serving.protocol import ChatRequest, CompletionRequest, SomeRequest
from malora_jax.serving.scheduler import Scheduler
from malora_jax.serving.workers import Workers

# Default maximum number of new tokens in a chat, if the context has room for them.
_DEFAULT_MAX_TOKENS = 1024


def make_app(
    models: Mapping[str, LanguageModel],
    *,
    batch_size: int = 32,
    max_waiting: int = 256,
    timeout_s: float = 600.0,
    body_timeout_s: float = 30.0,
    api_key: str | None = None,
    allowed_hosts: Collection[str] = (),
) -> fastapi.FastAPI:
    """Return the ASGI application; `app.state.scheduler` is its `Scheduler`.

    For example:

        app = make_app({'malora': malora_jax.load('runs/malora')}, api_key='secret')

    Args:
        models: Models by the names that requests use.
        batch_size: Maximum number of texts that are decoded together, for all models. The memory of
            the KV cache grows with the number of texts and with the longest of them.
        max_waiting: Maximum number of queued texts; further requests get status 429.
        timeout_s: Maximum time of a request in seconds. A slower request gets status 504, or an
            error event if streaming has started.
        body_timeout_s: Maximum time in seconds for the body of a request to arrive.
        api_key: API key that every request must have; None = no key is needed.
        allowed_hosts: Host names under which requests may reach the server, besides IP addresses
            and `localhost`; ignored if there is an API key.
    """
    scheduler, workers = Scheduler(models, batch_size, max_waiting), Workers()

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
        GuardMiddleware,
        api_key=api_key,
        allowed_hosts=allowed_hosts,
        body_timeout_s=body_timeout_s,
        is_draining=lambda: scheduler.is_draining,
    )
    add_error_handlers(app)
    service = _Service(models, scheduler, workers, timeout_s)
    app.get('/health')(service.health)
    app.get('/v1/models')(service.list_models)
    app.get('/v1/models/{name:path}')(service.get_model)
    app.post('/v1/chat/completions', openapi_extra=_request_body_schema(ChatRequest))(service.chat)
    app.post('/v1/completions', openapi_extra=_request_body_schema(CompletionRequest))(
        service.complete
    )
    app.openapi = functools.cache(functools.partial(_openapi, app))  # type: ignore[method-assign]
    return app


_REFERENCE = '#/components/schemas/{model}'


def _request_body_schema(kind: type[ChatRequest | CompletionRequest]) -> dict[str, Any]:
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
        tokenize: Function that returns the prompt's token ids; slow if the prompt is long.
    """

    size: int
    tokenize: Callable[[], list[int]]


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
        return {'status': 'ok', 'open_requests': self.scheduler.num_open_texts}

    async def list_models(self) -> dict[str, Any]:
        """List the names of the models."""
        return {'object': 'list', 'data': [self._describe(name) for name in self.models]}

    async def get_model(self, name: str) -> dict[str, Any]:
        """Return the description of one model.

        Raises:
            ApiError: There is no model with this name.
        """
        self._model(name)
        return self._describe(name)

    async def chat(self, http: fastapi.Request) -> Response:
        """Answer a request to POST /v1/chat/completions.

        Raises:
            ApiError: The request is invalid or cannot be completed.
        """
        body = await self._read(ChatRequest, http)
        model = self._model(body.model)
        messages = [message.to_dict() for message in body.messages]
        size = sum(len(message['content']) for message in messages)
        prompt = _Prompt(size, functools.partial(model.encode_prompt, messages))

        def choice(piece: TextPiece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            # White space before an answer belongs to the template; see `LanguageModel.chat`.
            text = piece.text if offset else piece.text.lstrip()
            logprobs = response_json.chat_logprobs(model, piece.tokens, body.num_top_logprobs)
            role = {'role': 'assistant'} if not (is_stream and offset) else {}
            what = {**role, 'content': text if is_stream else text.strip()}
            return {
                'index': index,
                'delta' if is_stream else 'message': what,
                'logprobs': logprobs,
                'finish_reason': piece.finish_reason,
            }

        return await self._respond(
            body, http, [prompt], 'messages', choice, 'chat.completion', 'chatcmpl'
        )

    async def complete(self, http: fastapi.Request) -> Response:
        """Answer a request to POST /v1/completions.

        Raises:
            ApiError: The request is invalid or cannot be completed.
        """
        body = await self._read(CompletionRequest, http)
        model = self._model(body.model)
        prompts = [
            _Prompt(len(text), functools.partial(model.encode_text, text)) for text in body.prompts
        ]

        def choice(piece: TextPiece, index: int, offset: int, is_stream: bool) -> dict[str, Any]:
            return {
                'index': index,
                'text': piece.text,
                'logprobs': response_json.completion_logprobs(
                    model, piece.tokens, body.num_top_logprobs, offset
                ),
                'finish_reason': piece.finish_reason,
            }

        return await self._respond(body, http, prompts, 'prompt', choice, 'text_completion', 'cmpl')

    async def _read(self, kind: type[SomeRequest], http: fastapi.Request) -> SomeRequest:
        try:
            raw = await http.body()
        except ClientDisconnect:
            raise ApiError(499, 'The client has disconnected.') from None
        content_type = http.headers.get('content-type', '').partition(';')[0].strip().lower()
        if content_type != 'application/json':
            # Browsers let any web page send some other content types to any server, without CORS
            # checks.
            raise ApiError(422, 'The body must have the content type application/json.')
        return await self.workers.run(len(raw), functools.partial(protocol.parse, kind, raw))

    def _model(self, name: str) -> LanguageModel:
        if name not in self.models:
            known = ', '.join(self.models)
            raise ApiError(
                404, f'There is no model {name[:256]!r}; available models: {known}.', 'model'
            )
        return self.models[name]

    def _describe(self, name: str) -> dict[str, Any]:
        return {'id': name, 'object': 'model', 'created': self.started, 'owned_by': 'malora_jax'}

    async def _respond(
        self,
        body: ChatRequest | CompletionRequest,
        http: fastapi.Request,
        prompts: Sequence[_Prompt],
        field: str,
        make_choice: Callable[[TextPiece, int, int, bool], dict[str, Any]],
        kind: str,
        prefix: str,
    ) -> Response:
        """Generate the texts of a request, and return the HTTP response, streamed or complete.

        Args:
            body: Parsed body of the request.
            http: HTTP request, whose connection is watched.
            prompts: Prompts; `body.n` texts are generated for each.
            field: Field of the body that holds the prompts, for error messages.
            make_choice: Function that converts a piece of text; see `event_stream.events`.
            kind: Field `object` of a response that is not streamed.
            prefix: Start of the response's `id`.

        Raises:
            ApiError: A prompt is too long, the queue is full, the server is shutting down, the
                client disconnects, time runs out, or the generation of a text failed.
        """
        model = self.models[body.model]
        for prompt in prompts:
            if prompt.size > model.max_characters:
                raise ApiError(
                    413,
                    f'{field}: {prompt.size:,} characters do not fit into the context of '
                    f'{model.model.config.context} tokens, which has at most '
                    f'{model.max_characters:,}.',
                    field,
                )
        common_fields = {
            'id': f'{prefix}-{uuid.uuid4().hex}',
            'object': kind,
            'created': int(time.time()),
            'model': body.model,
        }
        deadline = Deadline(self.timeout_s)
        generation = self.scheduler.reserve(body.model, len(prompts) * body.n)
        try:
            submission = self._submit_texts(body, generation, prompts, field)
            count = await deadline.run_or_cancel(submission, http)
            if body.stream:
                common_fields['object'] = kind if kind == 'text_completion' else f'{kind}.chunk'
                events = event_stream.events(
                    body, generation, common_fields, make_choice, count, deadline
                )
                cancel = functools.partial(self.scheduler.cancel, generation)
                return EventStream(events, cancel)
            texts = await deadline.run_or_cancel(response_json.collect_texts(generation), http)
        except BaseException:
            self.scheduler.cancel(generation)
            raise

        tokens = sum(len(piece.tokens) for piece in texts)

        def encode_response() -> bytes:
            choices = [make_choice(piece, i, 0, False) for i, piece in enumerate(texts)]
            value = common_fields | {
                'choices': choices,
                'usage': response_json.usage(count, tokens),
            }
            return ''.join(response_json.encode(value)).encode()

        content = await self.workers.run(
            tokens * (1 + (body.num_top_logprobs or 0)), encode_response
        )
        return Response(content, media_type='application/json')

    async def _submit_texts(
        self,
        body: ChatRequest | CompletionRequest,
        generation: Generation,
        prompts: Sequence[_Prompt],
        field: str,
    ) -> int:
        """Tokenize the prompts, and queue the generation of `body.n` texts for each prompt.

        Args:
            body: Parsed body of the request.
            generation: Texts of the request, in the order of the prompts.
            prompts: Prompts of the request.
            field: Field of the body that holds the prompts, for error messages.

        Returns:
            Total number of tokens of the prompts.
        """
        seed = uuid.uuid4().int % 2**31 if body.seed is None else body.seed % 2**31
        count = 0
        for number, prompt in enumerate(prompts):
            # Tokenize one prompt at a time, so that requests with many prompts do not delay others.
            request = await self.workers.run(
                prompt.size, functools.partial(self._engine_request, body, prompt, field)
            )
            for text in generation.texts[number * body.n : (number + 1) * body.n]:
                self.scheduler.submit(text, request, body.stop_strings, seed)
            count += len(request.prompt)
        return count

    def _engine_request(
        self, body: ChatRequest | CompletionRequest, prompt: _Prompt, field: str
    ) -> GenerationRequest:
        """Tokenize a prompt, and return the engine's request that all its `body.n` texts share.

        This is called in a worker thread, because a long prompt takes a while to tokenize.

        Raises:
            ApiError: The prompt has no tokens, or the prompt and its answer do not fit into the
                context.
            UserError: The template does not support the messages.
        """
        model = self.models[body.model]
        tokens, context = prompt.tokenize(), model.model.config.context
        if not tokens:
            raise ApiError(422, f'{field}: The prompt is empty.', field)
        limit = body.max_new_tokens
        if limit is None:
            limit = max(1, min(_DEFAULT_MAX_TOKENS, context - len(tokens)))
        try:
            check_context_length(model.model.config, len(tokens), limit)
        except UserError as error:
            raise ApiError(413, str(error), field) from error
        return GenerationRequest(
            tokens,
            limit,
            body.temperature,
            body.top_k,
            body.top_p,
            wants_logprobs=bool(body.num_top_logprobs),
        )

"""Choice of the language model that a stage queries, and of its reply cache."""

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from malora_jax.errors import UserError, out_of_range
from malora_jax.ultralink.llm import cache
from malora_jax.ultralink.llm.batch import BatchEndpoint
from malora_jax.ultralink.llm.cache import CachedModel, ReplyCache
from malora_jax.ultralink.llm.endpoint import Endpoint
from malora_jax.ultralink.llm.request_format import EndpointSettings

if TYPE_CHECKING:
    from malora_jax.ultralink.llm.local import LocalModel


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """The model of a stage, and how it is queried.

    Attributes:
        llm: Name of a model at an endpoint; or local:SOURCE, with a run directory or a config path
            (see `local.load_model`).
        cache: SQLite file of the reply cache.
        concurrency: Maximum number of concurrent requests; for a local model, the number of cache
            slots.
        base_url: Address of the endpoint; None = OpenAI's.
        timeout_s: Timeout of one attempt in seconds.
        token_limit: Maximum number of tokens, summed over all requests and replies, including those
            in the cache; 0 = no limit.
        endpoint: Format of requests, further limits and prices.
        sends_requests: Whether requests may be sent. Otherwise, no API key is needed.
    """

    llm: str
    cache: pathlib.Path
    concurrency: int = 64
    base_url: str | None = None
    timeout_s: float = 600.0
    token_limit: int = 0
    endpoint: EndpointSettings = dataclasses.field(default_factory=EndpointSettings)
    sends_requests: bool = True

    def __post_init__(self):
        if not self.llm.removeprefix(cache.LOCAL):
            raise out_of_range(
                '--llm',
                self.llm,
                'the name of a model, or local: followed by a run directory or a config file',
            )
        if self.base_url is not None and not self.base_url.startswith(('http://', 'https://')):
            allowed = 'an address that begins with http:// or https://'
            raise out_of_range('--base_url', self.base_url, allowed)
        only_endpoints = {
            '--base_url': self.base_url,
            '--token_limit': self.token_limit,
            **{f'--{name}': value for name, value in self.endpoint.changed.items()},
        }
        for flag, value in only_endpoints.items():
            if value and is_local(self.llm):
                raise UserError(
                    f'{flag} applies only to endpoints; --llm={self.llm} runs in this process.'
                )
        if self.concurrency < 1:
            raise out_of_range('--concurrency', self.concurrency, 'at least 1')
        if not self.timeout_s > 0:
            raise out_of_range('--timeout', self.timeout_s, 'positive')
        if self.token_limit < 0:
            raise out_of_range('--token_limit', self.token_limit, 'at least 0')


def is_local(llm: str) -> bool:
    """Return whether a model runs in this process instead of at an endpoint."""
    return llm.startswith(cache.LOCAL)


@contextlib.asynccontextmanager
async def open_model(choice: ModelChoice) -> AsyncIterator[CachedModel]:
    """Open the model and its cache, and close both at the end.

    Yields:
        The model, which first looks up each reply in the cache.

    Raises:
        UserError: The cache cannot be opened, the API key or the library of the endpoint is
            missing, or the local model cannot be loaded.
    """
    with cache.open_cache(choice.cache) as reply_cache:
        if is_local(choice.llm):
            model: LocalModel | Endpoint = _local_model(choice)
            cached_model = CachedModel(model, reply_cache)
        else:
            model = endpoint = _endpoint(choice, reply_cache)
            cached_model = CachedModel(
                endpoint, reply_cache, endpoint.address, endpoint.meter, endpoint.budget
            )
        try:
            if isinstance(model, BatchEndpoint):
                await model.resume()
            yield cached_model
        finally:
            await model.close()


def _local_model(choice: ModelChoice) -> 'LocalModel':
    # Imported here because it loads JAX, which runs with an endpoint do not need.
    from malora_jax.ultralink.llm import local

    return local.LocalModel(
        local.load_model(choice.llm.removeprefix(cache.LOCAL)), choice.concurrency
    )


def _endpoint(choice: ModelChoice, reply_cache: ReplyCache) -> Endpoint:
    usage = reply_cache.usage_by_model()
    options: dict[str, Any] = {
        'timeout_s': choice.timeout_s,
        'token_limit': choice.token_limit,
        'tokens_used': sum(used.total for used in usage.values()),
        'settings': choice.endpoint,
        'needs_key': choice.sends_requests,
        # Files of earlier versions do not name the model.
        'usage_before': {model or choice.llm: used for model, used in usage.items()},
    }
    if choice.endpoint.batch:
        return BatchEndpoint(choice.llm, choice.base_url, cache=reply_cache, **options)
    return Endpoint(choice.llm, choice.base_url, **options)

"""Choice of the language model that a stage queries, and of its reply cache."""

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from malora_jax.errors import UserError, out_of_range
from malora_jax.ultralink.llm import cache
from malora_jax.ultralink.llm.cache import CachedModel
from malora_jax.ultralink.llm.endpoint import Endpoint

if TYPE_CHECKING:
    from malora_jax.ultralink.llm.local import LocalModel

_LOCAL = 'local:'


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
    """

    llm: str
    cache: pathlib.Path
    concurrency: int = 64
    base_url: str | None = None
    timeout_s: float = 600.0
    token_limit: int = 0

    def __post_init__(self):
        if not self.llm.removeprefix(_LOCAL):
            raise out_of_range(
                '--llm',
                self.llm,
                'the name of a model, or local: followed by a run directory or a config file',
            )
        if self.base_url is not None and not self.base_url.startswith(('http://', 'https://')):
            allowed = 'an address that begins with http:// or https://'
            raise out_of_range('--base_url', self.base_url, allowed)
        for flag, value in (('--base_url', self.base_url), ('--token_limit', self.token_limit)):
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
    return llm.startswith(_LOCAL)


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
        model = _model(choice, reply_cache.total_tokens)
        try:
            yield CachedModel(model, reply_cache)
        finally:
            await model.close()


def _model(choice: ModelChoice, tokens_used: int) -> 'Endpoint | LocalModel':
    if is_local(choice.llm):
        # Imported here because it loads JAX, which runs with an endpoint do not need.
        from malora_jax.ultralink.llm import local

        return local.LocalModel(
            local.load_model(choice.llm.removeprefix(_LOCAL)), choice.concurrency
        )
    return Endpoint(
        choice.llm,
        choice.base_url,
        timeout_s=choice.timeout_s,
        token_limit=choice.token_limit,
        tokens_used=tokens_used,
    )

"""Preview of a stage: the prompts and replies of a few items, without any output."""

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from malora_jax.data.file_rows import Row
from malora_jax.ultralink.llm.cache import CachedModel
from malora_jax.ultralink.llm.cached_requests import current_item
from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from malora_jax.ultralink.selection import smallest_hashes
from malora_jax.ultralink.stage import ItemOutcome, StageRun, item_name, item_place, with_detail
from malora_jax.ultralink.stage_command import Stage


class _Exchange(NamedTuple):
    """A request, its reply, and whether the reply was in the cache already."""

    request: ModelRequest
    reply: Reply
    was_cached: bool


class _RecordingModel:
    """A model that records all requests and replies.

    Attributes:
        exchanges: Requests with their replies, in order.
    """

    def __init__(self, model: CachedModel):
        self.name = model.name
        self.exchanges: list[_Exchange] = []
        self._model = model

    async def complete(self, request: ModelRequest) -> Reply:
        was_cached = self._model.find(request) is not None
        reply = await self._model.complete(request)
        self.exchanges.append(_Exchange(request, reply, was_cached))
        return reply


async def preview(stage: Stage, run: StageRun[Any], num_items: int) -> str:
    """Process a few items, and return their prompts, replies and outcomes as text.

    The items are the first ones of a sample. The replies are cached, so a run of the stage does not
    pay for them again. Nothing else is written.

    Args:
        stage: Stage that uses a model.
        run: Settings, data and resources; the model has a cache.
        num_items: Number of items; all items if there are fewer.

    Raises:
        UserError: A setting or an item is wrong, or the model rejects a request.
        OSError: The model fails or cannot be reached.
    """
    items = smallest_hashes(stage.items(run), num_items, run.seed)
    cached_model = run.model
    assert isinstance(cached_model, CachedModel), cached_model
    slots = asyncio.Semaphore(run.concurrency)

    async def process(item: Row) -> tuple[_RecordingModel, ItemOutcome]:
        # Each item has its own model, because the requests of several items are in progress.
        model = _RecordingModel(cached_model)
        current_item.set(item_name(item))
        async with slots:
            return model, await stage.prepare(dataclasses.replace(run, model=model)).process(item)

    done = await asyncio.gather(*map(process, items))
    exchanges = [exchange for model, _ in done for exchange in model.exchanges]
    cached = sum(exchange.was_cached for exchange in exchanges)
    texts = [
        _item_text(item, model.exchanges, outcome)
        for item, (model, outcome) in zip(items, done, strict=True)
    ]
    number = f'{len(items)} item{"s" if len(items) > 1 else ""}'
    summary = (
        f'{number}, {len(exchanges)} requests: {cached} replies were in the cache, and '
        f'{len(exchanges) - cached} new ones are in the cache now, so a run does not request them '
        f'again. Nothing was written to {run.output}.'
    )
    return '\n\n'.join([*texts, summary])


def _item_text(item: Row, exchanges: Sequence[_Exchange], outcome: ItemOutcome) -> str:
    parts = [f'===== item {item_name(item)} ({item_place(item)})']
    shown: list[list[str]] = []
    for number, (request, reply, was_cached) in enumerate(exchanges, 1):
        source = 'from the cache' if was_cached else 'new, now in the cache'
        attempt = f', attempt {request.sample_index + 1}' if request.sample_index else ''
        parts.append(f'--- request {number} of {len(exchanges)}{attempt}')
        lines = [
            line
            for message in request.messages
            for line in (f'[{message.role}]', *message.content.split('\n'))
        ]
        parts += _new_lines(lines, shown)
        shown.append(lines)
        refusal = outcome.refusals.get(request)
        refused = f'; refused: {refusal}' if refusal else ''
        parts.append(f'[reply: {source}; {reply.finish_reason}{refused}]\n{reply.text}')
    result = f'dropped: {outcome.reason}' if outcome.reason else 'kept'
    return '\n'.join([*parts, f'--- {with_detail(result, outcome.detail)}'])


def _new_lines(lines: Sequence[str], shown: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a request without the first ones that an earlier request has, too.

    The requests of an item repeat its document, so all of them would be long otherwise.

    Args:
        lines: Lines of the request.
        shown: Lines of each earlier request of the item.
    """
    repeated = [_common_length(lines, earlier) for earlier in shown]
    length = max(repeated, default=0)
    if not length:
        return list(lines)
    number = repeated.index(length) + 1
    return [f'[as in request {number}: {length} lines]', *lines[length:]]


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of lines at the beginning that are equal."""
    pairs = zip(first, second, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

"""Estimate of the requests, tokens and price of a stage, before it sends a request.

Each stage knows which requests it expects for an item (see `Expectation`). Items whose replies are
in the cache are replayed, without requests. The ratio of their actual to their expected usage
corrects the estimate of the others, so that it includes repeated requests and the true length of
replies.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import shards
from malora_jax.ultralink.llm.cache import CachedModel
from malora_jax.ultralink.llm.cached_requests import current_item
from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from malora_jax.ultralink.llm.usage import TokenUsage
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.selection import ALL_ITEMS, smallest_hashes
from malora_jax.ultralink.stage import PreparedStage, StageRun, item_name
from malora_jax.ultralink.stage_command import Stage

# Number of items from which the expected usage of all others is computed.
_DRAWN_ITEMS = 200
# Number of finished items, and of items after them, whose replies are looked up in the cache. A
# killed run leaves replies to an unfinished shard and to a few items after it.
_FINISHED_ITEMS = 200
_NEXT_ITEMS = 1500
# An estimate from fewer items may be wrong by a quarter.
_FEW_ITEMS = 20
# Number of requests, tokens of requests, and tokens of replies.
_Usage = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated usage of a stage.

    Attributes:
        stage: Name of the stage.
        items: Number of items that need requests.
        cached_items: Number of items that need none, because all their replies are in the cache.
        requests, prompt_tokens, completion_tokens: Estimated number of requests, and of the tokens
            of requests and replies.
        cost: Estimated cost in US dollars; None if the prices of the model are unknown.
        basis: Clause that says how the numbers were obtained.
        warning: Sentences about a limit that the run probably reaches, and about replies that it
            cannot use; '' for none.
    """

    stage: str
    items: int
    cached_items: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    basis: str
    warning: str = ''

    def __str__(self) -> str:
        cached = f' (and {self.cached_items:,} from the cache)' if self.cached_items else ''
        if not self.items:
            return f'{self.stage}: estimate: no requests are left{cached}.'
        cost = 'price unknown without --prices' if self.cost is None else f'${self.cost:,.4f}'
        return (
            f'{self.stage}: estimate for {self.items:,} items{cached}: {self.requests:,} requests, '
            f'{self.prompt_tokens:,} prompt tokens, {self.completion_tokens:,} completion tokens, '
            f'{cost}; {self.basis}.' + (f'\n{self.warning}' if self.warning else '')
        )


async def estimate(stage: Stage, run: StageRun[Any]) -> Estimate:
    """Estimate the usage of a stage for the items that are not finished. No request is sent.

    Args:
        stage: Stage that uses a model.
        run: Settings, data and resources; the model has a cache.

    Raises:
        UserError: A setting or an item is wrong, or the output directory cannot be used.
    """
    estimator = _UsageEstimator(stage.prepare, run)
    settings = stage.recorded_settings(run, estimator.prepared)
    inputs = shards.digest(run.inputs)
    start = shards.find_start(
        run.output,
        StageManifest(
            stage.name, settings, run.seed, inputs, run.shard_items, selection=run.selection
        ),
    )
    remaining = iter(() if start.complete else stage.items(run))
    num_finished = start.total.items
    finished = collections.deque(itertools.islice(remaining, num_finished), _FINISHED_ITEMS)
    cached_usages, uncached = await estimator.measure(itertools.islice(remaining, _NEXT_ITEMS))
    drawn, num_items = _draw(itertools.chain(uncached, remaining), run.seed)
    # The first ones of the drawn items are those of a preview.
    previewed_usages, _ = await estimator.measure(drawn)
    cached_usages += previewed_usages
    num_items -= len(previewed_usages)
    similar_replies = estimator.similar_replies  # Only those of the items that are left.
    usages, _ = await estimator.measure(finished)
    measured = _with_requests(usages + cached_usages)
    if num_items and len(measured) < _FEW_ITEMS:
        with contextlib.suppress(UserError):  # A broken row that the run does not read.
            usages, _ = await estimator.measure(_items_of_other_previews(stage, run))
            measured += _with_requests(usages)
    usage_3 = sum(map(estimator.expected, drawn), np.zeros(3)) * num_items / max(1, len(drawn))
    if measured:
        actual_3, expected_3 = np.sum(measured, axis=0)
        usage_3 *= actual_3 / expected_3
    requests, *tokens = (round(float(value)) for value in usage_3)
    usage = TokenUsage(*tokens)
    return Estimate(
        stage.name,
        num_items,
        len(cached_usages),
        requests,
        usage.prompt,
        usage.completion,
        estimator.model.cost(usage),
        estimator.basis(len(measured)),
        '\n'.join(filter(None, [estimator.model.limit_warning(usage), similar_replies])),
    )


def count_bytes(text: str) -> int:
    """Return the approximate number of tokens of a text: a quarter of its UTF-8 bytes.

    It is used by stages without a tokenizer.
    """
    return len(text.encode('utf-8', 'replace')) // 4


def _items_of_other_previews(stage: Stage, run: StageRun[Any]) -> list[Row]:
    """Return the items that a preview without the selection of a run shows first."""
    assert isinstance(run.model, CachedModel), run.model
    if run.selection == ALL_ITEMS or run.model.is_empty:
        return []
    everything = stage.items(dataclasses.replace(run, selection=ALL_ITEMS))
    return smallest_hashes(everything, _DRAWN_ITEMS, run.seed)


def _draw(rows: Iterator[Row], seed: int) -> tuple[list[Row], int]:
    """Return a random sample of rows, and the number of all rows."""
    numbers = itertools.count()
    counted = (row for row, _ in zip(rows, numbers, strict=False))
    return smallest_hashes(counted, _DRAWN_ITEMS, seed), next(numbers)


class _MeasuredUsage(NamedTuple):
    """Actual and expected usage of an item whose replies are in the cache."""

    actual_3: _Usage
    expected_3: _Usage


def _with_requests(usages: Iterable[_MeasuredUsage]) -> list[_MeasuredUsage]:
    """Return the usages with requests and tokens: some items need no request.

    Some servers do not report numbers of tokens.
    """
    return [each for each in usages if np.all(each)]


class _UsageEstimator:
    """Expected usage of items, and actual usage of those whose replies are in the cache.

    Attributes:
        model: Model with the cache.
        prepared: The stage, prepared with a model that replies only from this cache.
    """

    def __init__(self, prepare: Callable[[StageRun[Any]], PreparedStage], run: StageRun[Any]):
        assert isinstance(run.model, CachedModel), run.model
        self.model = run.model
        self._replies = _CachedReplies(run.model)
        self.prepared = prepare(dataclasses.replace(run, model=self._replies))
        assert self.prepared.expectation
        self._expectation = self.prepared.expectation
        self._measured: set[str] = set()  # Locations of items.
        self._has_tokenizer = bool(run.token_counter)
        self._count_tokens = run.token_counter or count_bytes

    def expected(self, row: Row) -> _Usage:
        """Return the expected usage of an item."""
        requests = self._expectation.requests(row, self._count_tokens)
        return sum((np.array([1, *request]) for request in requests), np.zeros(3))

    async def measure(self, rows: Iterable[Row]) -> tuple[list[_MeasuredUsage], list[Row]]:
        """Return the usage of each item with cached replies, and the other items.

        Items of an earlier call are left out.
        """
        usages, others = [], []
        for row in rows:
            if row.location in self._measured:
                continue
            self._measured.add(row.location)
            current_item.set(item_name(row))
            self._replies.given.clear()
            try:
                await self.prepared.process(row)
            except _NotCachedError:
                others.append(row)
            else:
                usages.append(_MeasuredUsage(self._actual(), self.expected(row)))
        return usages, others

    @property
    def similar_replies(self) -> str:
        """Sentence about replies to the same messages that cannot be used; '' for none."""
        number = self._replies.items_with_similar_replies
        if not number:
            return ''
        items = f'{number:,} items' if number > 1 else 'one item'
        return (
            f'The cache has replies to the same messages for {items}, but from another --base-url '
            'or with other sampling settings, so the run pays for them again.'
        )

    def basis(self, num_measured: int) -> str:
        """Return the clause that says how an estimate was obtained.

        Args:
            num_measured: Number of items with actual usage that correct the estimate.
        """
        if num_measured:
            items = f'{num_measured:,} items' if num_measured > 1 else 'one item'
            few = num_measured < _FEW_ITEMS
            rough = f'imprecise below {_FEW_ITEMS} items (--preview={_FEW_ITEMS}); ' if few else ''
            return f'{rough}measured on the replies to {items} in the cache'
        counted = '' if self._has_tokenizer else ', 4 bytes per token'
        return (
            f'assuming no repeated requests, {self._expectation.assumption}{counted}; --preview=5 '
            'measures it'
        )

    def _actual(self) -> _Usage:
        replies = self._replies.given
        usage = sum((reply.usage for reply in replies), TokenUsage())
        return np.array([len(replies), usage.prompt, usage.completion])


class _NotCachedError(Exception):
    """The reply to a request is not in the cache."""


class _CachedReplies:
    """A model that replies only from the cache.

    Attributes:
        given: Replies since the list was last cleared.
        items_with_similar_replies: Number of items whose first missing reply is in the cache for
            another endpoint, or for other sampling settings.
    """

    def __init__(self, model: CachedModel):
        self.name = model.name
        self.given: list[Reply] = []
        self.items_with_similar_replies = 0
        self._model = model

    async def complete(self, request: ModelRequest) -> Reply:
        reply = self._model.find(request)
        if reply is None:
            self.items_with_similar_replies += self._model.has_similar_reply(request)
            raise _NotCachedError
        self.given.append(reply)
        return reply

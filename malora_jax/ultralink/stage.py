"""Runner of a stage: process items concurrently with asyncio, and write rows in input order."""

import asyncio
import collections
import dataclasses
import itertools
import pathlib
import random
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Generic, NamedTuple, TypeVar

from malora_jax.data.file_rows import Row
from malora_jax.data.seeds import stable_seed
from malora_jax.errors import UserError, out_of_range
from malora_jax.progress import ProgressBar
from malora_jax.ultralink import shards
from malora_jax.ultralink.llm.cached_requests import current_item
from malora_jax.ultralink.llm.chat import ChatModel, ModelRequest
from malora_jax.ultralink.selection import ALL_ITEMS, Selection
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.shards import ShardCounts, StageManifest
from malora_jax.ultralink.text.tokens import TokenCounter

# Number of items per shard. A killed run repeats the items of the unfinished shard, but model
# replies in the cache are not requested again.
SHARD_ITEMS = 1000
# Maximum number of items that are in progress or wait for a slower item before them, as a multiple
# of the concurrency.
_WINDOW_FACTOR = 4
# Length of an excerpt. A dump has millions of documents that are dropped, so that their full texts
# would fill the disk.
_EXCERPT_CHARACTERS = 300


class ItemOutcome(NamedTuple):
    """Result of processing one item.

    Attributes:
        rows: Output rows; empty for a dropped item.
        reason: Reason why the item is dropped; '' for a kept item.
        counts: Additional counts for the manifest, by name.
        message: Line to print to stderr; '' for none.
        detail: Explanation of the reason, such as the missing numbers; for a kept item, facts that
            a preview shows.
        text: Rejected text: a reply of the model; or, if no reply was the reason, the beginning of
            the item (see `excerpt`). '' for a kept item.
        attempts: Number of replies that the model gave to the request that failed; 0 if the item
            is dropped without one.
        refusals: Why each refused reply was refused, by its request. If the item is dropped, the
            last ones are those of the request that failed.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    reason: str = ''
    counts: Mapping[str, int] = {}
    message: str = ''
    detail: str = ''
    text: str = ''
    attempts: int = 0
    refusals: Mapping[ModelRequest, str] = {}


# Function that processes one item.
ProcessItem = Callable[[Row], Awaitable[ItemOutcome]]
# Function that yields the items in the input paths.
ReadItems = Callable[[Sequence[pathlib.Path]], Iterable[Row]]
Config = TypeVar('Config', bound=Settings)
# Typed as Any, so that stages can use the model or the tokenizer without a check for None.
_UNSET: Any = None


@dataclasses.dataclass(frozen=True)
class StageRun(Generic[Config]):
    """The settings, data and resources of one run of a stage.

    Attributes:
        config: Settings of the stage.
        inputs: Input files or directories.
        output: Output directory: new, or written by the same stage with the same settings and
            inputs.
        model: Language model to query; unset for a stage that uses none.
        token_counter: Token counter; unset for a stage that counts no tokens.
        seed: Random seed, also of the model's sampling.
        concurrency: Maximum number of items in progress at a time, each with at most one model
            request. A stage without a model ignores it.
        shard_items: Number of items per shard.
        selection: Selection of the input items to process.
        progress_facts: Function that returns short texts for the progress, such as the cost.
    """

    config: Config
    inputs: Sequence[pathlib.Path]
    output: pathlib.Path
    _: dataclasses.KW_ONLY
    model: ChatModel = _UNSET
    token_counter: TokenCounter = _UNSET
    seed: int = 0
    concurrency: int = 64
    shard_items: int = SHARD_ITEMS
    selection: Selection = ALL_ITEMS
    progress_facts: Callable[[], Sequence[str]] = tuple


class ExpectedRequest(NamedTuple):
    """Expected number of tokens of a model request and its reply."""

    prompt_tokens: float
    completion_tokens: float


class Expectation(NamedTuple):
    """Requests that a stage expects, from which the usage of a run is estimated.

    Attributes:
        requests: Function from an item and a token counter to the requests for the item, if the
            model's first reply is always usable.
        assumption: Clause about the length of replies, such as '100 tokens per reply'.
    """

    requests: Callable[[Row, Callable[[str], int]], Iterable[ExpectedRequest]]
    assumption: str


class PreparedStage(NamedTuple):
    """A stage that is ready to process items.

    Attributes:
        process: Function that processes one item.
        fingerprints: Strings, by name, such as a digest of the prompts, or mappings from language
            codes to strings. The manifest records them next to the settings, inputs, model and
            tokenizer, because the rows depend on them too.
        concurrency: Maximum number of items in progress at a time, for a stage without a model.
        expectation: Requests that the stage expects; None for a stage without a model.
    """

    process: ProcessItem
    fingerprints: Mapping[str, str | Mapping[str, str]] = {}
    concurrency: int = 1
    expectation: Expectation | None = None


async def run(
    stage: str,
    process: ProcessItem,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    concurrency: int = 1,
    shard_items: int = SHARD_ITEMS,
    selection: Selection = ALL_ITEMS,
    read: ReadItems | None = None,
    progress_facts: Callable[[], Sequence[str]] = tuple,
) -> StageManifest:
    """Run a stage, or resume it after the last finished shard.

    The output files are byte-identical for any concurrency and any number of interruptions,
    provided that `process` depends only on its item. After an error no new item is started, but
    items in progress are finished, because their model replies are already paid for.

    Args:
        stage: Name of the stage.
        process: Function that processes one item. It takes its random numbers from `item_rng`.
        inputs: Input files or directories.
        output: Output directory: new, or written by the same stage with the same settings and
            inputs.
        settings: Settings, model, tokenizer, prompts and so on, as values that JSON can represent.
            Together with the seed and the inputs, they determine the rows.
        seed: Random seed.
        concurrency: Maximum number of items in progress at a time.
        shard_items: Number of items per shard.
        selection: Selection of the input items to process; a larger one extends the output.
        read: Function that yields the input items. None = `shards.read`, which reads the rows of
            other stages; the ids of these rows must be unique.
        progress_facts: Function that returns short texts for the progress, such as the cost.

    Returns:
        The manifest of the finished stage.

    Raises:
        UserError: The concurrency is below 1, an input is missing or broken, there are no rows, two
            rows have the same id, the output directory cannot be used (see `shards.open_writer`),
            or `process` raises it.
    """
    if concurrency < 1:
        raise out_of_range('concurrency', concurrency, 'at least 1')
    manifest = StageManifest(
        stage, settings, seed, shards.digest(inputs), shard_items, selection=selection
    )
    with shards.open_writer(output, manifest) as writer:
        if not writer.manifest.complete:
            num_done = writer.manifest.total.items
            total = None if read else shards.count_rows(inputs)
            if total is not None:
                total = min(total, selection.max_items or total)
            selected = selection.select(read_items(inputs, read), seed)
            items = itertools.islice(selected, num_done, None)
            with ProgressBar(stage, total, 'item', num_done, delay=1.0) as bar:
                bar.update(num_done)

                async def process_and_count(item: Row) -> ItemOutcome:
                    outcome = await process(item)
                    # Outcomes wait for slower items before them, but they are paid for.
                    bar.advance(1, progress_facts())
                    return outcome

                outcomes = _process_in_order(process_and_count, items, concurrency)
                await _write_shards(writer, outcomes, bar)
            if not writer.manifest.shards:
                raise UserError(f'{", ".join(map(str, inputs))}: there are no rows.')
            writer.finish()
        return writer.manifest


def read_items(inputs: Sequence[pathlib.Path], read: ReadItems | None) -> Iterable[Row]:
    """Return all input items of a stage; see `run` for the arguments."""
    return read(inputs) if read else shards.ensure_unique_ids(shards.read(inputs))


def item_rng(seed: int, stage: str, item: str) -> random.Random:
    """Return the random number generator of an item, which does not depend on the order of items.

    Args:
        seed: Random seed of the run.
        stage: Name of the stage.
        item: Id of the item.
    """
    return random.Random(stable_seed(seed, stage, item))


def excerpt(text: str) -> str:
    """Return the beginning of an item's text, for `ItemOutcome.text`; the input has all of it."""
    return text if len(text) <= _EXCERPT_CHARACTERS else f'{text[:_EXCERPT_CHARACTERS]}…'


def format_counts(manifest: StageManifest, output: pathlib.Path | None = None) -> str:
    """Return the counts of a finished stage as text, one count per line.

    Args:
        manifest: Manifest of the stage.
        output: Directory of the stage, in which the ids of dropped items are looked up; None = the
            text has no ids.
    """
    total = manifest.total
    ids = shards.first_rejects(output, manifest) if output else {}
    lines = [f'{manifest.stage}: {total.items:,} items, {total.kept:,} kept, {total.rows:,} rows']
    lines += [
        f'  dropped, {reason}: {number:,} (the first: {total.first[reason]}'
        f'{", id " + ids[reason] if ids.get(reason) else ""})'
        for reason, number in total.dropped.items()
    ]
    return '\n'.join(lines + [f'  {name}: {number:,}' for name, number in total.counts.items()])


async def _write_shards(
    writer: shards.ShardWriter,
    outcomes: AsyncIterator[tuple[Row, ItemOutcome]],
    bar: ProgressBar,
) -> None:
    """Write the outcomes in shards, each for a fixed number of items."""
    rows: list[Mapping[str, Any]] = []
    rejects: list[Mapping[str, Any]] = []
    shard = ShardCounts()
    async for item, outcome in outcomes:
        rows += outcome.rows
        if outcome.reason:
            rejects.append(_reject_row(writer.manifest.stage, item, outcome))
        shard += _count_outcome(item, outcome)
        if outcome.message:
            bar.write(outcome.message, sys.stderr)
        if shard.items == writer.manifest.shard_items:
            writer.add(rows, shard, rejects)
            rows, rejects, shard = [], [], ShardCounts()
    if shard.items:
        writer.add(rows, shard, rejects)


def _count_outcome(item: Row, outcome: ItemOutcome) -> ShardCounts:
    """Return the counts of a single item."""
    assert bool(outcome.rows) != bool(outcome.reason), (item.location, outcome.reason)
    if not outcome.reason:
        return ShardCounts(1, 1, len(outcome.rows), counts=outcome.counts)
    first = {outcome.reason: item_place(item)}
    return ShardCounts(1, 0, 0, {outcome.reason: 1}, first, outcome.counts)


def _reject_row(stage: str, item: Row, outcome: ItemOutcome) -> Mapping[str, Any]:
    """Return the row of a dropped item in the rejects file (see `shards`)."""
    fields = {
        'id': str(item.fields.get('id', '')),
        'stage': stage,
        'location': item_place(item),
        'reason': outcome.reason,
        'detail': outcome.detail,
        'attempts': outcome.attempts,
        'text': outcome.text,
    }
    # The last refusals are those of the request that failed.
    refusals = list(outcome.refusals.values())[-outcome.attempts :]
    return {
        **{
            name: _encodable(value) if isinstance(value, str) else value
            for name, value in fields.items()
        },
        'refusals': [_encodable(each) for each in refusals],
    }


def _encodable(text: str) -> str:
    """Replace unpaired surrogates, which a dropped item may have, and UTF-8 cannot encode."""
    return text.encode('utf-8', 'replace').decode()


def with_detail(reason: str, detail: str) -> str:
    """Return a reason, with its detail in parentheses if there is one."""
    return f'{reason} ({detail})' if detail else reason


def item_name(item: Row) -> str:
    """Return the id of an item; without an id, its file name and line."""
    return str(item.fields.get('id', item_place(item)))


def item_place(item: Row) -> str:
    """Return file name and line of an item, without the directory, which may be moved."""
    return pathlib.PurePath(item.location).name


async def _process_in_order(
    process: ProcessItem, items: Iterator[Row], concurrency: int
) -> AsyncIterator[tuple[Row, ItemOutcome]]:
    """Process items concurrently, and yield each with its outcome in input order.

    An item that finishes early waits until all earlier items are finished. The number of waiting
    items is limited.
    """
    slots = asyncio.Semaphore(concurrency)
    failed = asyncio.Event()
    read_errors: list[UserError] = []

    def read_items() -> Iterator[Row]:
        try:
            yield from items
        except UserError as error:  # Re-raised below, after the items before it.
            read_errors.append(error)

    async def work(item: Row) -> tuple[Row, ItemOutcome]:
        current_item.set(item_name(item))
        try:
            return item, await process(item)
        except BaseException:
            failed.set()
            raise
        finally:
            slots.release()

    window: collections.deque[asyncio.Task[tuple[Row, ItemOutcome]]] = collections.deque()
    try:
        for item in read_items():
            await slots.acquire()
            if failed.is_set():
                break
            window.append(asyncio.create_task(work(item)))
            while window and (window[0].done() or len(window) > _WINDOW_FACTOR * concurrency):
                yield await window.popleft()
        while window:
            yield await window.popleft()
        for error in read_errors:
            raise error
    except Exception:
        await asyncio.gather(*window, return_exceptions=True)
        raise
    finally:
        for task in window:
            task.cancel()

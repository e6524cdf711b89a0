"""Runs a stage: one coroutine over all items, their rows written in the items' order."""

import asyncio
import collections
import dataclasses
import itertools
import pathlib
import random
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

import tqdm

from malora_jax.data.rows import Row
from malora_jax.data.seeds import stable_seed
from malora_jax.errors import UserError, out_of_range
from malora_jax.ultralink import shards
from malora_jax.ultralink.llm.chat import Model
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.shards import Manifest, Shard
from malora_jax.ultralink.text.tokens import Counter

# Items of a shard: what a kill may cost, as far as no cache remembers it.
SHARD_ITEMS = 1000
# Finished items that wait for a slow one before them, for each that is at work.
_AHEAD = 4


class Outcome(NamedTuple):
    """What became of an item.

    Attributes:
        rows: that it gives; none for one that is dropped.
        reason: why it is dropped; '' for one that is kept.
        counts: of whatever else is to be counted.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    reason: str = ''
    counts: Mapping[str, int] = {}


Process = Callable[[Row], Awaitable[Outcome]]
Read = Callable[[Sequence[pathlib.Path]], Iterable[Row]]
Config = TypeVar('Config', bound=Settings)
# Its type lets the stages that ask a model or count tokens use them without checking for None.
_UNSET: Any = None


@dataclasses.dataclass(frozen=True)
class StageRun(Generic[Config]):
    """The settings, data and resources of one run of a stage.

    Attributes:
        config: Settings of the stage.
        inputs: Input files or directories.
        output: Output directory, new or of the same stage with the same settings and inputs.
        model: Model to ask; unset for a stage that asks none.
        tokenizer: Counts tokens; unset for a stage that counts none.
        seed: Random seed, also of the model's sampling.
        concurrency: Number of items in progress at a time, each with one request to the model; a
            stage that asks no model ignores it.
        shard_items: Items per shard.
    """

    config: Config
    inputs: Sequence[pathlib.Path]
    output: pathlib.Path
    _: dataclasses.KW_ONLY
    model: Model = _UNSET
    tokenizer: Counter = _UNSET
    seed: int = 0
    concurrency: int = 64
    shard_items: int = SHARD_ITEMS


class Prepared(NamedTuple):
    """A stage that is ready to process items.

    Attributes:
        process: Process function of an item.
        fingerprints: Values for the manifest that identify what rows depend on besides settings,
            inputs, model and tokenizer, such as prompts.
    """

    process: Process
    fingerprints: Mapping[str, str] = {}


async def run(
    stage: str,
    process: Process,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    concurrency: int = 1,
    shard_items: int = SHARD_ITEMS,
    read: Read | None = None,
) -> Manifest:
    """Runs a stage, or goes on with it after the last finished shard.

    The files of the output have the same bytes whatever the concurrency and wherever it was killed,
    if what `process` does depends on its item alone. After an error nothing new is begun, but what
    is begun is finished: its answers are paid for.

    Args:
        stage: its name.
        process: of one item; what is random in it comes from `random_of`.
        inputs: files or directories.
        output: directory, new or of the same stage with the same settings and inputs.
        settings: whatever rows depend on beside inputs and seed; plain values and dicts of them.
        seed: of what is drawn.
        concurrency: items at work at a time.
        shard_items: items of a shard.
        read: gives the items of the inputs; None if they are rows as stages write them, each of
            which must have an id of its own.

    Raises:
        UserError: as `read`, `shards.distinct`, `process` and `shards.opened`, or there are no
            rows.
    """
    if concurrency < 1:
        raise out_of_range('concurrency', concurrency, 'at least 1')
    wanted = Manifest(stage, settings, seed, shards.digest(inputs), shard_items)
    with shards.opened(output, wanted) as target:
        if not target.manifest.complete:
            done = target.manifest.total.items
            if read:
                rows, total = read(inputs), None
            else:
                rows, total = shards.distinct(shards.read(inputs)), shards.count(inputs)
            items = itertools.islice(rows, done, None)
            with tqdm.tqdm(
                desc=stage, initial=done, total=total, unit=' items', dynamic_ncols=True, delay=1.0
            ) as bar:
                await _write(target, _in_order(process, items, concurrency), bar)
            if not target.manifest.shards:
                raise UserError(f'{", ".join(map(str, inputs))}: there are no rows.')
            target.finish()
        return target.manifest


def random_of(seed: int, stage: str, item: str) -> random.Random:
    """The random numbers of an item, by its id: the same in whatever order items come."""
    return random.Random(stable_seed(seed, stage, item))


def describe(manifest: Manifest) -> str:
    """The counts of a finished stage, a line each."""
    total = manifest.total
    lines = [f'{manifest.stage}: {total.items:,} items, {total.kept:,} kept, {total.rows:,} rows']
    lines += [
        f'  dropped, {reason}: {number:,} (the first: {total.first[reason]})'
        for reason, number in total.dropped.items()
    ]
    return '\n'.join(lines + [f'  {name}: {number:,}' for name, number in total.counts.items()])


async def _write(
    target: shards.Shards, outcomes: AsyncIterator[tuple[Row, Outcome]], bar: tqdm.tqdm
) -> None:
    rows: list[Mapping[str, Any]] = []
    shard = Shard()
    async for item, outcome in outcomes:
        rows += outcome.rows
        shard += _counted(item, outcome)
        bar.update()
        if shard.items == target.manifest.shard_items:
            target.add(rows, shard)
            rows, shard = [], Shard()
    if shard.items:
        target.add(rows, shard)


def _counted(item: Row, outcome: Outcome) -> Shard:
    assert bool(outcome.rows) != bool(outcome.reason), (item.place, outcome.reason)
    if not outcome.reason:
        return Shard(1, 1, len(outcome.rows), counts=outcome.counts)
    place = pathlib.PurePath(item.place).name
    return Shard(1, 0, 0, {outcome.reason: 1}, {outcome.reason: place}, outcome.counts)


async def _in_order(
    process: Process, items: Iterator[Row], concurrency: int
) -> AsyncIterator[tuple[Row, Outcome]]:
    """Items with what became of them, in order; some are at work behind one that takes long."""
    free = asyncio.Semaphore(concurrency)
    failed = asyncio.Event()
    broken: list[UserError] = []

    def readable() -> Iterator[Row]:
        try:
            yield from items
        except UserError as error:  # Raised below, once the items before it are finished.
            broken.append(error)

    async def work(item: Row) -> tuple[Row, Outcome]:
        try:
            return item, await process(item)
        except BaseException:
            failed.set()
            raise
        finally:
            free.release()

    window: collections.deque[asyncio.Task[tuple[Row, Outcome]]] = collections.deque()
    try:
        for item in readable():
            await free.acquire()
            if failed.is_set():
                break
            window.append(asyncio.create_task(work(item)))
            while window and (window[0].done() or len(window) > _AHEAD * concurrency):
                yield await window.popleft()
        while window:
            yield await window.popleft()
        for error in broken:
            raise error
    except Exception:
        await asyncio.gather(*window, return_exceptions=True)
        raise
    finally:
        for task in window:
            task.cancel()

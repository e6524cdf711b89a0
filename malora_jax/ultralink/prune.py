"""Stage `prune`: translations are cut to a budget for each language and skill.

What a model has learnt of mathematics and code in English, it need not learn again in every
language (section 5 of the paper, and its Figure 4): of the translations, 32K maths and 16K code a
language are enough. English stays whole. In the other languages near-duplicates are taken out
first; then a random sample is drawn, for which each row's place is a hash of seed and id, so that
it depends neither on the order of rows nor on other rows than those that are left out.
"""

import asyncio
import collections
import dataclasses
import hashlib
import heapq
import pathlib
from collections.abc import Sequence

import tqdm

from malora_jax import errors, markdown
from malora_jax.data.rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import conversations, shards, stage
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import Manifest
from malora_jax.ultralink.stage import Outcome
from malora_jax.ultralink.text.near_duplicates import THRESHOLD, Sketches

STAGE = 'prune'
_WHOLE = 'en'
_KEPT, _NEAR, _OVER = 'kept', 'near-duplicate', 'over the budget'

# Language and subset.
_Group = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """How much is kept of each language but English. The budgets are the paper's.

    Attributes:
        math, code, chat_agnostic, chat_specific: the most rows of a language; 0 = all.
        least_similarity: of near-duplicates.
    """

    math: int = 32_000
    code: int = 16_000
    chat_agnostic: int = 0
    chat_specific: int = 0
    least_similarity: float = THRESHOLD

    def __post_init__(self):
        errors.check_types(STAGE, self)
        for name in SUBSETS:
            if getattr(self, name) < 0:
                raise errors.out_of_range(f'{STAGE}.{name}', getattr(self, name), 'at least 0')
        if not 0 < self.least_similarity <= 1:
            right = 'above 0 and at most 1'
            raise errors.out_of_range(f'{STAGE}.least_similarity', self.least_similarity, right)


def prune(
    config: PruneConfig,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    seed: int = 0,
    shard_items: int = stage.SHARD_ITEMS,
) -> Manifest:
    """Keeps a part of the conversations.

    Args:
        config: how much.
        inputs: rows as in `conversations`.
        output: directory for the rows that are kept, as they are.
        seed: of what is drawn.
        shard_items: see `stage.run`.

    Raises:
        UserError: as `stage.run`; or a row is no conversation, or has another one's id.
    """
    # Before there is an event loop, which would keep Ctrl-C waiting till all is compared.
    dropped = _dropped(config, inputs, seed)

    async def process(row: Row) -> Outcome:
        conversation = conversations.read(row)
        reason = dropped.get(conversation.id, '')
        counts = {f'{conversation.language} {conversation.subset}: {reason or _KEPT}': 1}
        return Outcome([] if reason else [dict(row.fields)], reason, counts)

    settings = dataclasses.asdict(config)
    return asyncio.run(
        stage.run(
            STAGE, process, inputs, output, settings=settings, seed=seed, shard_items=shard_items
        )
    )


def table(manifest: Manifest) -> str:
    """What became of the rows of each language and subset, in Markdown."""
    total = manifest.total
    counts: dict[_Group, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, number in total.counts.items():
        group, _, what = name.partition(': ')
        language, _, subset = group.partition(' ')
        counts[language, subset][what] = number
    assert total.items == sum(of_group.total() for of_group in counts.values())
    head = ('language', 'subset', 'rows', 'near-duplicates', 'over the budget', 'kept')
    body = [
        (*group, *_shown(counts[group]))
        for group in ((language, subset) for language in LANGUAGES for subset in SUBSETS)
        if group in counts
    ]
    together = sum(counts.values(), collections.Counter[str]())
    return markdown.table([head, *body, ('all', '', *_shown(together))])


def _shown(counts: collections.Counter[str]) -> list[str]:
    numbers = (counts.total(), counts[_NEAR], counts[_OVER], counts[_KEPT])
    return [f'{number:,}' for number in numbers]


def _dropped(config: PruneConfig, inputs: Sequence[pathlib.Path], seed: int) -> dict[str, str]:
    """Why each row that is not kept is dropped, by its id."""
    ids: dict[str, _Group] = {}
    sketches: dict[_Group, Sketches] = {}
    for row in tqdm.tqdm(
        shards.read(inputs), 'compare', shards.count(inputs), unit=' rows', delay=1.0
    ):
        conversation = conversations.read(row)
        if conversation.id in ids:
            raise UserError(f'{row.place}: another row has the id {conversation.id!r} too.')
        group = ids[conversation.id] = conversation.language, conversation.subset
        if conversation.language != _WHOLE:
            of_group = sketches.setdefault(group, Sketches())
            of_group.add(conversation.id, '\n'.join(conversation.data))
    dropped: dict[str, str] = {}
    for of_group in sketches.values():
        dropped |= dict.fromkeys(of_group.near_duplicates(config.least_similarity), _NEAR)
    by_group: dict[_Group, list[str]] = {group: [] for group in sketches}
    for key, group in ids.items():
        if group in by_group and key not in dropped:
            by_group[group].append(key)
    for (_, subset), keys in by_group.items():
        budget = getattr(config, subset)
        if budget:
            drawn = heapq.nsmallest(budget, keys, key=lambda key: _place(seed, key))
            dropped |= dict.fromkeys(set(keys).difference(drawn), _OVER)
    return dropped


def _place(seed: int, key: str) -> bytes:
    """A random place in the order of rows, of enough bits that no two share one."""
    return hashlib.sha256(f'{seed}/{STAGE}/{key}'.encode()).digest()

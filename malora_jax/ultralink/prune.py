"""Stage `prune`: reduce translations to a budget for each language and subset.

Skills in mathematics and code transfer from English, so a model need not learn them again in every
language (section 5 and Figure 4 of the paper): 32,000 translated conversations about mathematics
and 16,000 about code per language are enough. All English rows are kept. In the other languages,
near-duplicates are removed first. Then a random sample is drawn: the rows with the smallest hashes
of seed and id. So the sample does not depend on the order of the rows.
"""

import collections
import dataclasses
import hashlib
import heapq
import pathlib
from collections.abc import Sequence

import tqdm

from malora_jax import markdown
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import conversations, shards
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import Manifest
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import Outcome, Prepared, StageRun, describe
from malora_jax.ultralink.text.near_duplicates import THRESHOLD, Sketches

STAGE = 'prune'
_WHOLE = 'en'
_KEPT, _NEAR, _OVER = 'kept', 'near-duplicate', 'over the budget'

# A pair of a language code and a subset.
_Group = tuple[str, str]


def _budget(subset: str, default: int) -> int:
    """Declare the settings field for the budget of a subset."""
    text = (
        f'Maximum number of conversations to keep per language, except English, in the subset of '
        f'{subset}; 0 = all.'
    )
    return setting(text, default, at_least=0)


@dataclasses.dataclass(frozen=True)
class PruneConfig(Settings):
    """Settings of pruning: the budget of each subset per language, except English.

    The default budgets are the paper's.
    """

    section = STAGE
    math: int = _budget('mathematics', 32_000)
    code: int = _budget('code', 16_000)
    chat_agnostic: int = _budget('language-agnostic chat', 0)
    chat_specific: int = _budget('language-specific chat', 0)
    least_similarity: float = setting(
        'Estimated Jaccard similarity from which two conversations are near-duplicates, of which '
        'only one is kept.',
        THRESHOLD,
        above=0,
        at_most=1,
    )


def prepare(run: StageRun[PruneConfig]) -> Prepared:
    """Read all rows, decide which to drop, and return the process function of a row.

    Rows that are kept stay unchanged.

    Raises:
        UserError: A row is not a conversation, or two rows have the same id.
    """
    dropped = _dropped(run.config, run.inputs, run.seed)

    async def process(row: Row) -> Outcome:
        conversation = conversations.read(row)
        reason = dropped.get(conversation.id, '')
        counts = {f'{conversation.language} {conversation.subset}: {reason or _KEPT}': 1}
        return Outcome([] if reason else [dict(row.fields)], reason, counts)

    return Prepared(process)


def summary(run: StageRun[PruneConfig], manifest: Manifest) -> str:
    """Return the counts of the stage, and the table of languages and subsets."""
    return f'{describe(manifest)}\n\n{table(manifest)}'


def table(manifest: Manifest) -> str:
    """Return the numbers of kept and dropped rows of each language and subset, in Markdown."""
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
    """Return the reason why each dropped row is dropped, by the id of the row."""
    ids: dict[str, _Group] = {}
    sketches: dict[_Group, Sketches] = {}
    for row in tqdm.tqdm(
        shards.read(inputs), 'compare', shards.count(inputs), unit=' rows', delay=1.0
    ):
        conversation = conversations.read(row)
        if conversation.id in ids:
            raise UserError(f'{row.location}: another row has the id {conversation.id!r} too.')
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
    """Return the hash that orders rows randomly, with enough bits that no two rows collide."""
    return hashlib.sha256(f'{seed}/{STAGE}/{key}'.encode()).digest()

"""Stage `prune`: reduce translations to a budget for each language and subset.

Skills in mathematics and code transfer from English, so a model need not learn them again in every
language (section 5 and Figure 4 of the paper): 32,000 translated conversations about mathematics
and 16,000 about code per language are enough. By default, all English rows are kept. In the other
languages, near-duplicates are removed first, except in mathematics: sets such as MetaMathQA consist
of rephrasings, and the paper removes none. Then a random sample is drawn: the rows with the
smallest hashes of seed and id. So the sample does not depend on the order of the rows.
"""

import collections
import dataclasses
import hashlib
import heapq
import pathlib
from collections.abc import Sequence

from malora_jax import markdown
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.progress import track
from malora_jax.ultralink import conversations, shards
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import (
    ItemOutcome,
    PreparedStage,
    StageRun,
    excerpt,
    format_counts,
)
from malora_jax.ultralink.text.near_duplicates import THRESHOLD, MinHashSketches

STAGE = 'prune'
# Language of which all rows are kept by default.
_SOURCE_LANGUAGE = 'en'
# Outcomes of a row, as the manifest records them.
_KEPT, _DUPLICATE, _OVER_BUDGET = 'kept', 'near-duplicate', 'over the budget'

# A pair of a language code and a subset.
_Group = tuple[str, str]


def _budget(subset: str, default: int) -> int:
    """Declare a setting for the maximum number of conversations to keep in a subset."""
    text = (
        f'Maximum number of conversations to keep in the subset of {subset}, for each language '
        'other than English; for English, see the flag "english"; 0 = no limit.'
    )
    return setting(text, default, at_least=0)


@dataclasses.dataclass(frozen=True)
class PruneConfig(Settings):
    """Settings of pruning: a budget for each subset, and the threshold of near-duplicates.

    A budget is the maximum number of conversations to keep for each language. By default, it does
    not apply to English. The default budgets are the paper's.
    """

    section = STAGE
    math: int = _budget('mathematics', 32_000)
    code: int = _budget('code', 16_000)
    chat_agnostic: int = _budget('language-agnostic chat', 0)
    chat_specific: int = _budget('language-specific chat', 0)
    english: str = setting(
        'Treatment of English conversations: keep = keep all of them, as in the paper; prune = '
        'remove near-duplicates and apply the limits, as in the other languages.',
        'keep',
        choices=('keep', 'prune'),
    )
    math_near_duplicates: str = setting(
        'Treatment of near-duplicates in mathematics: keep = keep them, because sets such as '
        'MetaMathQA are rephrasings of the same problems; remove = keep one of them, as in the '
        'other subsets.',
        'keep',
        choices=('keep', 'remove'),
    )
    min_similarity: float = setting(
        'Similarity threshold: two conversations whose estimated Jaccard similarity is at least '
        'this are near-duplicates, and only one of them is kept.',
        THRESHOLD,
        above=0,
        at_most=1,
    )


def prepare(run: StageRun[PruneConfig]) -> PreparedStage:
    """Read all rows, decide which to drop, and return the function that keeps or drops a row.

    Kept rows are not changed.

    Raises:
        UserError: A row is not a conversation, or two rows have the same id.
    """
    dropped = _find_dropped(run.config, run.inputs, run.seed)

    async def process(row: Row) -> ItemOutcome:
        conversation = conversations.read(row)
        reason, detail = dropped.get(conversation.id, ('', ''))
        counts = {f'{conversation.language} {conversation.subset}: {reason or _KEPT}': 1}
        if reason:
            text = excerpt('\n'.join(conversation.data))
            return ItemOutcome((), reason, counts, detail=detail, text=text)
        return ItemOutcome([dict(row.fields)], '', counts)

    return PreparedStage(process)


def summary(run: StageRun[PruneConfig], manifest: StageManifest) -> str:
    """Return the counts of the stage, and the table of kept and dropped rows, as text."""
    return f'{format_counts(manifest, run.output)}\n\n{table(manifest)}'


def table(manifest: StageManifest) -> str:
    """Return the numbers of kept and dropped rows of each language and subset, in Markdown."""
    total = manifest.total
    counts: dict[_Group, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, number in total.counts.items():
        group, _, outcome = name.partition(': ')
        language, _, subset = group.partition(' ')
        counts[language, subset][outcome] = number
    assert total.items == sum(group_counts.total() for group_counts in counts.values())
    head = ('language', 'subset', 'rows', 'near-duplicates', 'over the budget', 'kept')
    body = [
        (*group, *_count_cells(counts[group]))
        for group in ((language, subset) for language in LANGUAGES for subset in SUBSETS)
        if group in counts
    ]
    total_counts = sum(counts.values(), collections.Counter[str]())
    return markdown.table([head, *body, ('all', '', *_count_cells(total_counts))])


def _count_cells(counts: collections.Counter[str]) -> list[str]:
    numbers = (counts.total(), counts[_DUPLICATE], counts[_OVER_BUDGET], counts[_KEPT])
    return [f'{number:,}' for number in numbers]


def _find_dropped(
    config: PruneConfig, inputs: Sequence[pathlib.Path], seed: int
) -> dict[str, tuple[str, str]]:
    """Return why each dropped row is dropped, with details, by the id of the row."""
    ids: dict[str, _Group] = {}
    sketches: dict[_Group, MinHashSketches] = {}
    for row in track(shards.read(inputs), 'compare', 'row', shards.count_rows(inputs)):
        conversation = conversations.read(row)
        if conversation.id in ids:
            raise UserError(f'{row.location}: an earlier row has the same id {conversation.id!r}.')
        group = ids[conversation.id] = conversation.language, conversation.subset
        if conversation.language != _SOURCE_LANGUAGE or config.english == 'prune':
            of_group = sketches.setdefault(group, MinHashSketches())
            if conversation.subset != 'math' or config.math_near_duplicates == 'remove':
                of_group.add(conversation.id, '\n'.join(conversation.data))
    dropped: dict[str, tuple[str, str]] = {}
    for of_group in sketches.values():
        for key, nearest in of_group.near_duplicates(config.min_similarity).items():
            dropped[key] = _DUPLICATE, f'of {nearest}'
    by_group: dict[_Group, list[str]] = {group: [] for group in sketches}
    for key, group in ids.items():
        if group in by_group and key not in dropped:
            by_group[group].append(key)
    for (_, subset), keys in by_group.items():
        budget = getattr(config, subset)
        if budget:
            drawn = heapq.nsmallest(budget, keys, key=lambda key: _sampling_key(seed, key))
            detail = f'{budget} of {len(keys)} rows are kept'
            dropped |= dict.fromkeys(set(keys).difference(drawn), (_OVER_BUDGET, detail))
    return dropped


def _sampling_key(seed: int, key: str) -> bytes:
    """Return a sort key that orders rows randomly: a hash of the seed and the id of the row.

    The hash has enough bits that no two rows have the same.

    Args:
        seed: Random seed.
        key: Id of the row.
    """
    return hashlib.sha256(f'{seed}/{STAGE}/{key}'.encode()).digest()

"""Manifest of a stage's output directory: its stage, settings, inputs, shards and counts."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.schema import PositiveInt
from malora_jax.ultralink.selection import ALL_ITEMS, Selection

NAME = 'manifest.json'

# Renamed settings: from the name in manifests of earlier versions to the current name.
_RENAMED = {
    'least_tokens': 'min_document_tokens',
    'most_tokens': 'max_document_tokens',
    'least_segment_tokens': 'min_segment_tokens',
    'least_characters': 'min_characters',
    'most_characters': 'max_characters',
    'least_answer': 'min_answer_characters',
    'least_question': 'min_question_characters',
    'most_question': 'max_question_characters',
    'most_similarity': 'max_similarity',
    'least_similarity': 'min_similarity',
}

# Prefix of the digests of prompts by language.
_BY_LANGUAGE = 'prompts.'
# Settings that manifests of earlier versions lack, by stage, with the value that they had.
_ADDED = {
    'documents': {'license': ''},
    'prune': {'english': 'keep', 'math_near_duplicates': 'remove'},
    'judge': {'protocol': 'both_orders'},
    'import': {'subset': 'auto', 'title': '', 'url': '', 'license': ''},
}


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Counts of one shard, or the sum of several shards.

    Attributes:
        items: Number of input items.
        kept: Number of items that gave rows.
        rows: Number of rows written.
        dropped: Number of items without rows, by reason.
        first: File name and line of the first dropped item, by reason.
        counts: Additional counts of the stage, by name.
        sha256: SHA-256 digest of the shard file, in hexadecimal; '' for a sum of several shards.
    """

    items: int = 0
    kept: int = 0
    rows: int = 0
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sha256: str = ''

    def __post_init__(self):
        assert self.items == self.kept + sum(self.dropped.values()), self

    def __add__(self, other: 'ShardCounts') -> 'ShardCounts':
        """Return the sum of both counts.

        If both have dropped items for the same reason, `first` keeps that of the left operand,
        which is the earlier shard.
        """
        return ShardCounts(
            self.items + other.items,
            self.kept + other.kept,
            self.rows + other.rows,
            _sum(self.dropped, other.dropped),
            {**other.first, **self.first},
            _sum(self.counts, other.counts),
        )


class _StoredManifest(TypedDict):
    """Schema of `manifest.json`; `total` has the sums over all shards."""

    stage: str
    settings: dict[str, Any]
    seed: int
    inputs: str
    shard_items: PositiveInt
    shards: list[ShardCounts]
    complete: bool
    selection: NotRequired[Selection]  # Missing in manifests of earlier versions.
    total: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageManifest:
    """Content of `manifest.json` in a stage's directory.

    Attributes:
        stage: Name of the stage that writes the directory.
        settings: Settings, model, tokenizer, prompts and so on, as JSON values. Together with the
            seed and the inputs, they determine the rows.
        seed: Random seed.
        inputs: SHA-256 digest of the inputs' content.
        shard_items: Number of items in each shard except the last.
        shards: For each shard written so far, in order, its numbers of items and rows.
        complete: Whether all selected items are processed.
        selection: Selection of the input items that the stage processes.
    """

    stage: str
    settings: Mapping[str, Any]
    seed: int
    inputs: str
    shard_items: int
    shards: tuple[ShardCounts, ...] = ()
    complete: bool = False
    selection: Selection = ALL_ITEMS

    @property
    def total(self) -> ShardCounts:
        """Sum of the counts of all shards."""
        return sum(self.shards, ShardCounts())

    def extend(self, selection: Selection) -> 'StageManifest':
        """Return the manifest from which a run with a larger selection continues.

        The last shard is removed if it has fewer items than the others, because the larger
        selection adds items to it.
        """
        if selection == self.selection:
            return self
        full = tuple(shard for shard in self.shards if shard.items == self.shard_items)
        return dataclasses.replace(self, selection=selection, shards=full, complete=False)


def write_manifest(path: pathlib.Path, manifest: StageManifest) -> None:
    """Write the manifest of a directory, with the total counts of all shards."""
    files.write_json(path / NAME, {**dataclasses.asdict(manifest), 'total': _total(manifest)})


def read_manifest(path: pathlib.Path) -> StageManifest:
    """Read the manifest of a stage's directory, whether complete or not.

    Raises:
        UserError: The manifest is missing or broken.
    """
    file = path / NAME
    if not file.exists():
        raise UserError(
            f'{path} is not the output directory of an UltraLink stage: {file} is missing.'
        )
    remedy = f'restore it, or remove {path}'
    fields = files.read_json(file, _StoredManifest, remedy)
    try:
        shards = tuple(ShardCounts(**shard) for shard in fields['shards'])
        known = {each.name: fields.get(each.name) for each in dataclasses.fields(StageManifest)}
        settings = {_RENAMED.get(name, name): value for name, value in fields['settings'].items()}
        # Settings keep their order, so that the file is written with the same bytes again.
        settings |= {
            name: value
            for name, value in _ADDED.get(fields['stage'], {}).items()
            if name not in settings
        }
        selection = Selection(**fields.get('selection', {}))
        current = {'settings': settings, 'shards': shards, 'selection': selection}
        manifest = StageManifest(**known | current)
        # The totals only disagree if the file was edited.
        assert fields['total'] == _total(manifest)
    except AssertionError as error:
        raise UserError(f'{file} has counts that do not add up: {remedy}.') from error
    return manifest


def check_resumable(path: pathlib.Path, stored: StageManifest, expected: StageManifest) -> None:
    """Check that a run can resume in a directory.

    Args:
        path: The directory, for messages.
        stored: Manifest of the directory.
        expected: Manifest of the run.

    Raises:
        UserError: The directory was made by another stage, with other settings, from other inputs,
            or with items that the run does not select.
    """
    if stored.stage != expected.stage:
        raise UserError(
            f'{path} was made by the stage {stored.stage!r}, not by {expected.stage!r}: choose '
            'another --output.'
        )
    # First, because digests of files that belong to the inputs, such as attributions, also differ.
    if stored.inputs != expected.inputs:
        raise UserError(f'{path} was made from other inputs: choose another --output.')
    ours, theirs = (
        {'seed': each.seed, 'shard_items': each.shard_items, **_flat(each.settings)}
        for each in (expected, stored)
    )
    # A language that only one of both knows has no rows: neither would have read them.
    known = [name for name in (*ours, *theirs) if name.startswith(_BY_LANGUAGE)]
    unshared = set(known) - (ours.keys() & theirs.keys())
    for name in sorted({*ours, *theirs} - unshared):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f'{path} was made with {name} = {theirs.get(name)!r}, not {ours.get(name)!r}: '
                'choose another --output.'
            )
    if not expected.selection.contains(stored.selection):
        raise UserError(
            f'{path} was made with {stored.selection}, not {expected.selection}: '
            f'{stored.selection.extension}choose another --output.'
        )


def _total(manifest: StageManifest) -> dict[str, Any]:
    total = dataclasses.asdict(manifest.total)
    del total['sha256']
    return total


def _flat(settings: Mapping[str, Any], before: str = '') -> dict[str, Any]:
    """Return nested settings as a flat dict with dotted names.

    Args:
        settings: Settings, possibly nested.
        before: Prefix of all names, such as 'outer.'; '' at the top level.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{before}{name}.')
        else:
            flat[before + name] = value
    return flat


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    both = collections.Counter(left)
    both.update(right)
    return dict(sorted(both.items()))

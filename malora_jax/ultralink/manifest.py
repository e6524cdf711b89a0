"""What a stage's directory says of itself: which stage made it from what, and its counts."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.schema import Positive

NAME = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Shard:
    """The counts of a shard, or of several together.

    Attributes:
        items: taken from the input.
        kept: items with rows.
        rows: that were written.
        dropped: items without rows, by reason.
        first: the place of the first item that was dropped for each reason.
        counts: of whatever else the stage counts.
        sha256: of the file; '' of several together.
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

    def __add__(self, other: 'Shard') -> 'Shard':
        """Both together; `first` is that of the left one where both have it."""
        return Shard(
            self.items + other.items,
            self.kept + other.kept,
            self.rows + other.rows,
            _sum(self.dropped, other.dropped),
            {**other.first, **self.first},
            _sum(self.counts, other.counts),
        )


class _Stored(TypedDict):
    stage: str
    settings: dict[str, Any]
    seed: int
    inputs: str
    shard_items: Positive
    shards: list[Shard]
    complete: bool
    total: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory holds.

    Attributes:
        stage: the stage that writes it.
        settings: whatever the rows depend on beside the inputs and the seed, as JSON has it.
        seed: of what is drawn.
        inputs: digest of the inputs' content.
        shard_items: items of each shard but the last.
        shards: those that are written.
        complete: whether all items are.
    """

    stage: str
    settings: Mapping[str, Any]
    seed: int
    inputs: str
    shard_items: int
    shards: tuple[Shard, ...] = ()
    complete: bool = False

    @property
    def total(self) -> Shard:
        """The counts of all shards together."""
        return sum(self.shards, Shard())


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a directory, with the counts of all shards together."""
    files.write_json(path / NAME, {**dataclasses.asdict(manifest), 'total': _total(manifest)})


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a stage's directory, complete or not.

    Raises:
        UserError: there is none, or it is broken.
    """
    file = path / NAME
    if not file.exists():
        raise UserError(f'{path} holds no stage of UltraLink: there is no {file}.')
    remedy = f'restore it, or remove {path}'
    fields = files.read_json(file, _Stored, remedy)
    try:
        shards = tuple(Shard(**shard) for shard in fields['shards'])
        known = {each.name: fields[each.name] for each in dataclasses.fields(Manifest)}
        manifest = Manifest(**known | {'shards': shards})
        # As it was written, unless by hand.
        assert fields['total'] == _total(manifest)
    except AssertionError as error:
        raise UserError(f'{file} has counts that do not add up: {remedy}.') from error
    return manifest


def check_same(path: pathlib.Path, found: Manifest, wanted: Manifest) -> None:
    """Checks that a directory may be gone on with.

    Raises:
        UserError: it was made by another stage, with other settings or from other inputs.
    """
    if found.stage != wanted.stage:
        raise UserError(
            f'{path} was made by the stage {found.stage!r}, not by {wanted.stage!r}: choose '
            'another --output.'
        )
    ours, theirs = (
        {'seed': each.seed, 'shard_items': each.shard_items, **_flat(each.settings)}
        for each in (wanted, found)
    )
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f'{path} was made with {name} = {theirs.get(name)!r}, not {ours.get(name)!r}: '
                'choose another --output.'
            )
    if found.inputs != wanted.inputs:
        raise UserError(f'{path} was made from other inputs: choose another --output.')


def _total(manifest: Manifest) -> dict[str, Any]:
    total = dataclasses.asdict(manifest.total)
    del total['sha256']
    return total


def _flat(settings: Mapping[str, Any], before: str = '') -> dict[str, Any]:
    """Settings in settings by names with dots."""
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

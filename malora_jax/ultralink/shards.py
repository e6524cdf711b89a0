"""A stage's directory: rows in shards, and a manifest that says what they are.

rows-00000.jsonl …    one JSON object a line; a shard has the rows of a fixed number of items
manifest.json         stage, settings, seed, digest of the inputs, and the counts of each shard

A shard is written before the manifest that tells of it, each to a temporary name first: whatever
was killed, the manifest is true, and the stage goes on after the shards that it lists. Nothing in
the directory tells of time or of how often it was begun.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax import files
from malora_jax.data.rows import Row, check_file
from malora_jax.errors import UserError

_MANIFEST = 'manifest.json'
_LOCK = '.lock'


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


class Shards:
    """A stage's directory that is being written."""

    def __init__(self, path: pathlib.Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest

    def add(self, rows: Sequence[Mapping[str, Any]], counts: Shard) -> None:
        """Writes the next shard.

        Args:
            rows: in order.
            counts: of their items; without a digest.
        """
        path = _shard_path(self.path, len(self.manifest.shards))
        files.write_json_lines(path, list(rows))
        shard = dataclasses.replace(counts, rows=len(rows), sha256=_digest(path))
        self._write(shards=(*self.manifest.shards, shard))

    def finish(self) -> None:
        """Says that all items are written."""
        self._write(complete=True)

    def _write(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        total = dataclasses.asdict(self.manifest.total)
        del total['sha256']
        fields = dataclasses.asdict(self.manifest)
        files.write_json(self.path / _MANIFEST, {**fields, 'total': total})


@contextlib.contextmanager
def opened(path: pathlib.Path, manifest: Manifest) -> Iterator[Shards]:
    """A directory to write to, new or to go on with; other processes are kept out meanwhile.

    Args:
        path: of the directory; made if it is not there.
        manifest: without shards.

    Raises:
        UserError: the directory holds something else or was made by another stage, with other
            settings or from other inputs; or another process writes to it.
    """
    # As it will be read again: tuples become lists.
    manifest = dataclasses.replace(manifest, settings=json.loads(json.dumps(manifest.settings)))
    if path.exists() and not path.is_dir():
        raise UserError(f'{path} is not a directory: choose another --output.')
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f'Another process writes to {path}.') from error
        if (path / _MANIFEST).exists():
            found = read_manifest(path)
            _check_same(path, found, manifest)
            yield Shards(path, found)
            return
        if any(other.name != _LOCK and '.tmp' not in other.name for other in path.iterdir()):
            raise UserError(f'{path} is not empty and holds no stage: choose another --output.')
        shards = Shards(path, manifest)
        shards._write()
        yield shards


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a stage's directory, complete or not.

    Raises:
        UserError: there is none, or it is broken.
    """
    file = path / _MANIFEST
    if not file.exists():
        raise UserError(f'{path} holds no stage of UltraLink: there is no {file}.')
    fields = files.read_json(file)
    try:
        del fields['total']
        fields['shards'] = tuple(Shard(**shard) for shard in fields['shards'])
        return Manifest(**fields)
    except (KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f'{file} is no manifest of a stage: restore it, or remove {path}.'
        ) from error


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """The rows of stages' directories and of JSON Lines files, one after the other.

    Raises:
        UserError: a path is missing, a directory is not complete or a shard is not as the manifest
            says, or a line is no JSON object, with file and line.
    """
    for path in paths:
        if not path.is_dir():
            yield from read_lines(path)
            continue
        for number, shard in enumerate(_complete(path).shards):
            file = _shard_path(path, number)
            if not file.exists() or _digest(file) != shard.sha256:
                raise UserError(f'{file} is not as it was written: restore it, or remove {path}.')
            yield from read_lines(file)


def count(paths: Sequence[pathlib.Path]) -> int | None:
    """How many rows `read` gives, if all are of directories."""
    if not all(path.is_dir() for path in paths):
        return None
    return sum(_complete(path).total.rows for path in paths)


def read_lines(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a JSON Lines file, a line at a time; blank lines are skipped.

    Raises:
        UserError: the file is missing, or a line is no JSON object, with file and line.
    """
    check_file(path)
    with path.open('rb') as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f'{path}:{number}'
            try:
                fields = json.loads(line)
            except UnicodeDecodeError as error:
                raise UserError(f'{place} is not UTF-8.') from error
            except json.JSONDecodeError as error:
                raise UserError(
                    f'{place} is not valid JSON ({error.msg} at column {error.colno}).'
                ) from error
            except RecursionError as error:
                raise UserError(f'{place} is nested too deeply.') from error
            if not isinstance(fields, dict):
                raise UserError(f'{place} is not a JSON object.')
            yield Row(place, fields)


def text_field(row: Row, name: str) -> str:
    """A field of a row that must be text, perhaps empty.

    Raises:
        UserError: it is missing, something else, or holds what UTF-8 cannot.
    """
    value = row.fields.get(name)
    if not isinstance(value, str):
        what = 'has no' if value is None else 'must have text as'
        raise UserError(f'{row.place} {what} {name!r}.')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{row.place}: {name!r} holds a half of a character.') from error
    return value


def digest(paths: Sequence[pathlib.Path]) -> str:
    """A digest of the content of inputs: files, directories of files, or of stages.

    Raises:
        UserError: one is missing, or a stage's directory is not complete.
    """
    parts = []
    for path in paths:
        if not path.is_dir():
            check_file(path)
            parts.append(_digest(path))
        elif (path / _MANIFEST).exists():
            parts += [shard.sha256 for shard in _complete(path).shards]
        else:
            parts += [_digest(file) for file in sorted(path.rglob('*')) if file.is_file()]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def _complete(path: pathlib.Path) -> Manifest:
    manifest = read_manifest(path)
    if not manifest.complete:
        raise UserError(
            f'{path} is not complete: run its stage, {manifest.stage!r}, again to its end.'
        )
    return manifest


def _check_same(path: pathlib.Path, found: Manifest, wanted: Manifest) -> None:
    """Checks that a directory may be gone on with."""
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


def _flat(settings: Mapping[str, Any], before: str = '') -> dict[str, Any]:
    """Settings in settings by names with dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{before}{name}.')
        else:
            flat[before + name] = value
    return flat


def _shard_path(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f'rows-{number:05d}.jsonl'


def _digest(path: pathlib.Path) -> str:
    with path.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    both = collections.Counter(left)
    both.update(right)
    return dict(sorted(both.items()))

"""A stage's directory: rows in shards, and a manifest that says what they are.

rows-00000.jsonl …    one JSON object a line; a shard has the rows of a fixed number of items
manifest.json         stage, settings, seed, digest of the inputs, and the counts of each shard

A shard is written before the manifest that tells of it, each to a temporary name first: whatever
was killed, the manifest is true, and the stage goes on after the shards that it lists. Nothing in
the directory tells of time or of how often it was begun.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from malora_jax import files
from malora_jax.data.rows import Row, check_file
from malora_jax.errors import UserError
from malora_jax.ultralink import manifest as manifest_lib
from malora_jax.ultralink.manifest import (
    Manifest,
    Shard,
    check_same,
    read_manifest,
    write_manifest,
)

# NaN and Infinity, which are not JSON, could not be written again as they are.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


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
        write_manifest(self.path, self.manifest)


@contextlib.contextmanager
def opened(path: pathlib.Path, manifest: Manifest) -> Iterator[Shards]:
    """A directory to write to, new or to go on with; other processes are kept out meanwhile.

    Args:
        path: of the directory; made if it is not there.
        manifest: without shards.

    Raises:
        UserError: the directory holds something else or was made by another stage, with other
            settings or from other inputs; a shard is not as the manifest says; or another process
            writes to it.
    """
    # As it will be read again: tuples become lists.
    manifest = dataclasses.replace(manifest, settings=json.loads(json.dumps(manifest.settings)))
    if path.exists() and not path.is_dir():
        raise UserError(f'{path} is not a directory: choose another --output.')
    with files.locked(path, f'Another process writes to {path}.'):
        if (path / manifest_lib.NAME).exists():
            found = read_manifest(path)
            # With no shard yet there is nothing to lose, such as after a mistake in the first rows.
            if found.shards:
                check_same(path, found, manifest)
                _files(path, found)
                yield Shards(path, found)
                return
        elif any(other.name != files.LOCK and '.tmp' not in other.name for other in path.iterdir()):
            raise UserError(f'{path} is not empty and holds no stage: choose another --output.')
        # Not written yet: what is refused leaves nothing behind.
        shards = Shards(path, manifest)
        yield shards
        if not shards.manifest.shards:
            shards._write()


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """The rows of stages' directories and of JSON Lines files, one after the other.

    Raises:
        UserError: a path is missing, a directory is not complete or a shard is not as the manifest
            says, or a line is no JSON object, with file and line.
    """
    for path in paths:
        for file in _files(path, _complete(path)) if path.is_dir() else [path]:
            yield from read_lines(file)


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows whose ids must be their own: of two with one id, what is made could not be told apart.

    Raises:
        UserError: a row has the id of one before it.
    """
    seen: set[str] = set()
    for row in rows:
        identifier = row.fields.get('id')
        if isinstance(identifier, str):
            if identifier in seen:
                raise UserError(f'{row.place}: another row has the id {identifier!r} too.')
            seen.add(identifier)
        yield row


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
        for place, fields in files.parse_json_lines(lines, f'{path}:', decode=_DECODER.decode):
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
        elif (path / manifest_lib.NAME).exists():
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


def _files(path: pathlib.Path, manifest: Manifest) -> list[pathlib.Path]:
    """The files of all shards of a directory.

    Raises:
        UserError: one is not as the manifest says.
    """
    files_ = [_shard_path(path, number) for number in range(len(manifest.shards))]
    for file, shard in zip(files_, manifest.shards, strict=True):
        if not file.is_file() or _digest(file) != shard.sha256:
            raise UserError(f'{file} is not as it was written: restore it, or remove {path}.')
    return files_


def _shard_path(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f'rows-{number:05d}.jsonl'


def _digest(path: pathlib.Path) -> str:
    with path.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()

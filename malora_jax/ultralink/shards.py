"""Output directory of a stage: rows in shards, and a manifest that describes them.

rows-00000.jsonl …      shards: one JSON object per line, from a fixed number of input items
rejects-00000.jsonl …   dropped items of each shard; a shard without dropped items has no such file
manifest.json           stage, settings, seed, digest of the inputs, and the counts of each shard

A line of a rejects file is {"id", "stage", "location", "reason", "detail", "attempts", "text",
"refusals"}: the place of the item in the input, and attributes of `stage.ItemOutcome`; `refusals`
lists why each reply to the request that failed was refused. There are as many lines for each reason
as the manifest counts.

A shard is written before the manifest that lists it, and each file is written to a temporary name
first. So the manifest is correct even if the process is killed, and the stage resumes after the
shards that the manifest lists. The content of the directory does not depend on the time or on the
number of restarts.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from malora_jax import files
from malora_jax.data.compressed_files import open_decompressed
from malora_jax.data.file_rows import Row, check_file
from malora_jax.errors import UserError
from malora_jax.ultralink import manifest as manifest_lib
from malora_jax.ultralink.manifest import (
    ShardCounts,
    StageManifest,
    check_resumable,
    read_manifest,
    write_manifest,
)

# NaN and Infinity are read as None: they are not JSON, so they could not be written back.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


class ShardWriter:
    """Output directory of a stage, open for writing.

    Attributes:
        path: Path of the directory.
        manifest: Manifest of the shards written so far.
    """

    def __init__(self, path: pathlib.Path, manifest: StageManifest):
        self.path = path
        self.manifest = manifest

    def add(
        self,
        rows: Sequence[Mapping[str, Any]],
        counts: ShardCounts,
        rejects: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the next shard and its rejects file, then the manifest that lists them.

        Args:
            rows: Rows of the shard, in order.
            counts: Counts of the items that the rows come from; the row count and the digest are
                filled in here.
            rejects: Rows of the rejects file, in the order of the items.
        """
        number = len(self.manifest.shards)
        path = _shard_path(self.path, number)
        if not number or path.exists():
            # A directory with a shard but without a manifest could not be resumed. Moreover, the
            # stored manifest may list a shorter shard, from a smaller selection, by this name.
            self._write()
        rejects_path = _rejects_path(self.path, number)
        if rejects:
            files.write_json_lines(rejects_path, list(rejects))
        else:
            # A killed run with other settings, or a shorter shard, may have left a file.
            rejects_path.unlink(missing_ok=True)
        files.write_json_lines(path, list(rows))
        shard = dataclasses.replace(counts, rows=len(rows), sha256=_file_digest(path))
        self._write(shards=(*self.manifest.shards, shard))

    def finish(self) -> None:
        """Record in the manifest that all items are processed."""
        self._write(complete=True)

    def _write(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, **changes)
        write_manifest(self.path, self.manifest)


@contextlib.contextmanager
def open_writer(path: pathlib.Path, manifest: StageManifest) -> Iterator[ShardWriter]:
    """Open a new or existing output directory for writing, and lock out other processes.

    Args:
        path: Path of the directory; created if it does not exist.
        manifest: Manifest of the run, without shards.

    Yields:
        Writer, which continues after the shards of an earlier run.

    Raises:
        UserError: The directory cannot be used (see `find_start`), or another process writes to it.
    """
    _check_directory(path)
    with files.lock_directory(path, f'Another process writes to {path}.'):
        # The manifest is not written yet, so that a run that fails early leaves nothing behind.
        writer = ShardWriter(path, find_start(path, manifest))
        yield writer
        if not writer.manifest.shards:
            writer._write()


def find_start(path: pathlib.Path, manifest: StageManifest) -> StageManifest:
    """Return the manifest from which a run starts: that of an earlier run, or an empty one.

    A directory whose manifest lists no shard yet is treated as new.

    Args:
        path: Output directory, which need not exist.
        manifest: Manifest of the run, without shards.

    Raises:
        UserError: The path is not a directory; the directory holds other files; it was made by
            another stage, with other settings, from other inputs or with a selection that the run
            cannot extend; or a shard does not match the manifest.
    """
    # Convert tuples to lists, as JSON does, so that the settings compare equal when read back.
    manifest = dataclasses.replace(manifest, settings=json.loads(json.dumps(manifest.settings)))
    _check_directory(path)
    if (path / manifest_lib.NAME).exists():
        stored = read_manifest(path)
        # Without a shard, such as after an error in the first rows, nothing is lost.
        if stored.shards:
            check_resumable(path, stored, manifest)
            _verified_shard_paths(path, stored)
            return stored.extend(manifest.selection)
    elif path.exists() and any(
        other.name != files.LOCK_FILE and '.tmp' not in other.name for other in path.iterdir()
    ):
        raise UserError(
            f'{path} is not empty and has no manifest of a stage: choose another --output.'
        )
    return manifest


def _check_directory(path: pathlib.Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f'{path} is not a directory: choose another --output.')


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the rows of JSON Lines files and of output directories of stages, in order.

    Raises:
        UserError: A path is missing, a directory is not complete, a shard does not match the
            manifest, or a line is not a JSON object; the message names the file and line.
    """
    for path in paths:
        for file in _verified_shard_paths(path, _complete(path)) if path.is_dir() else [path]:
            yield from read_json_rows(file)


def read_listed(path: pathlib.Path, manifest: StageManifest) -> Iterator[Row]:
    """Yield the rows of the shards that a directory's manifest lists, also of an unfinished stage.

    Raises:
        UserError: A shard does not match the manifest, or a line is not a JSON object.
    """
    for file in _verified_shard_paths(path, manifest):
        yield from read_json_rows(file)


def read_rejects(path: pathlib.Path, manifest: StageManifest) -> Iterator[Row]:
    """Yield the rows of the rejects files of all shards that a directory's manifest lists.

    Files that do not exist are skipped, because earlier versions wrote none.

    Raises:
        UserError: A file does not have the reasons that the manifest counts, or a line is not a
            JSON object.
    """
    for number, shard in enumerate(manifest.shards):
        file = _rejects_path(path, number)
        if shard.dropped and file.exists():
            rows = list(read_json_rows(file))
            if collections.Counter(row.fields.get('reason') for row in rows) != shard.dropped:
                raise UserError(
                    f'{file} was changed after it was written: its reasons are not those in '
                    f'{path / manifest_lib.NAME}.'
                )
            yield from rows


def first_rejects(path: pathlib.Path, manifest: StageManifest) -> dict[str, str]:
    """Return the id of the first dropped item for each reason, as far as it is recorded.

    Only the rejects files that have such an item are read.
    """
    found: dict[str, str] = {}
    for number, shard in enumerate(manifest.shards):
        file = _rejects_path(path, number)
        if shard.dropped.keys() - found and file.exists():
            for row in read_json_rows(file):
                found.setdefault(str(row.fields.get('reason')), str(row.fields.get('id', '')))
    return found


def count_unrecorded(path: pathlib.Path, manifest: StageManifest) -> int:
    """Return the number of dropped items of shards without a rejects file."""
    return sum(
        sum(shard.dropped.values())
        for number, shard in enumerate(manifest.shards)
        if not _rejects_path(path, number).exists()
    )


def ensure_unique_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows, and check that their ids are unique, because ids identify the output rows.

    A row whose id is missing or not a string is not checked.

    Raises:
        UserError: A row has the id of an earlier row.
    """
    seen: set[str] = set()
    for row in rows:
        identifier = row.fields.get('id')
        if isinstance(identifier, str):
            if identifier in seen:
                raise UserError(f'{row.location}: an earlier row has the same id {identifier!r}.')
            seen.add(identifier)
        yield row


def count_rows(paths: Sequence[pathlib.Path]) -> int | None:
    """Return the number of rows that `read` yields, or None if any path is a file.

    The number comes from the manifests of the directories; the rows of a file are not counted
    because the whole file would have to be read.

    Raises:
        UserError: A directory has no manifest, or is not complete.
    """
    if not all(path.is_dir() for path in paths):
        return None
    return sum(_complete(path).total.rows for path in paths)


def read_json_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file one at a time; blank lines are skipped.

    The file may be compressed (see `compressed_files`).

    Raises:
        UserError: The file is missing, or a line is not a JSON object; the message names the line.
    """
    check_file(path)
    with open_decompressed(path) as lines:
        for location, fields in files.parse_json_lines(lines, f'{path}:', decode=_DECODER.decode):
            if not isinstance(fields, dict):
                raise UserError(f'{location} is not a JSON object.')
            yield Row(location, fields)


def text_field(row: Row, name: str) -> str:
    """Return a field of a row that must be a string, possibly empty.

    Raises:
        UserError: The field is missing, is not a string, or has an unpaired surrogate, which UTF-8
            cannot encode.
    """
    value = row.fields.get(name)
    if not isinstance(value, str):
        what = 'has no' if value is None else 'must have a string as'
        raise UserError(f'{row.location} {what} {name!r}.')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f'{row.location}: {name!r} contains an unpaired surrogate, which is not valid Unicode '
            'text.'
        ) from error
    return value


def digest(paths: Sequence[pathlib.Path]) -> str:
    """Return the SHA-256 digest of the content of inputs, in hexadecimal.

    Args:
        paths: Files, output directories of stages, or directories of other files.

    Raises:
        UserError: A path is missing, or a stage's directory is not complete.
    """
    parts = []
    for path in paths:
        if not path.is_dir():
            check_file(path)
            parts.append(_file_digest(path))
        elif (path / manifest_lib.NAME).exists():
            parts += [shard.sha256 for shard in _complete(path).shards]
        else:
            parts += [_file_digest(file) for file in sorted(path.rglob('*')) if file.is_file()]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def _complete(path: pathlib.Path) -> StageManifest:
    """Return the manifest of the output directory of a finished stage.

    Raises:
        UserError: The manifest is missing or broken, or the stage has not finished.
    """
    manifest = read_manifest(path)
    if not manifest.complete:
        raise UserError(
            f'{path} is not complete: repeat the command of its stage {manifest.stage!r} to finish '
            'it.'
        )
    return manifest


def _verified_shard_paths(path: pathlib.Path, manifest: StageManifest) -> list[pathlib.Path]:
    """Return the paths of all shards of a directory, after a check of their digests.

    Raises:
        UserError: A shard does not match the manifest.
    """
    paths = [_shard_path(path, number) for number in range(len(manifest.shards))]
    for file, shard in zip(paths, manifest.shards, strict=True):
        if not file.is_file() or _file_digest(file) != shard.sha256:
            raise UserError(
                f'{file} is missing or was changed after it was written: restore it, or remove '
                f'{path}.'
            )
    return paths


def _shard_path(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f'rows-{number:05d}.jsonl'


def _rejects_path(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f'rejects-{number:05d}.jsonl'


def _file_digest(path: pathlib.Path) -> str:
    with path.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()

"""Directories in Google Cloud Storage, gs://BUCKET/PATH, by way of local copies.

An object store knows no append, lock or rename; an object is there as a whole or not at all. So a
command works on a copy of a directory's files (`local`), and what has changed in it is written back
at certain moments (`push`). Checkpoints are left out: Orbax has them in the bucket (`home`).

Nothing is locked there. But before anything is written back, the objects must be those that were
read or written last: of two runs in one directory, the one that began first stops at its next
`push`.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from malora_jax import shutdown
from malora_jax.errors import UserError

_SCHEME = 'gs://'
_CHECKPOINTS = 'checkpoints'


def local(address: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a directory or file, or that of its copy if it is in a bucket.

    Raises:
        UserError: the address is none, the extra `gcs` is not installed, or there is no access.
        OSError: the bucket cannot be reached.
    """
    text = os.fspath(address)
    if '://' not in text:
        return pathlib.Path(os.path.expanduser(text))
    bucket, _, key = text.removeprefix(_SCHEME).partition('/')
    key = key.rstrip('/')
    if not (text.startswith(_SCHEME) and bucket and key):
        raise UserError(f'{text} must be a path, or in a bucket as gs://BUCKET/PATH.')
    if (bucket, key) not in _copies:
        _copies[bucket, key] = _Copy(bucket, key)
    _copies[bucket, key].pull()
    return _copies[bucket, key].path


def home(path: pathlib.Path) -> pathlib.Path:
    """Where that is of which a path is the copy, as a path of etils; any other path as it is."""
    for copy in _copies.values():
        if path.is_relative_to(copy.path):
            from etils import epath

            # It does what a Path does, but is none.
            return cast(pathlib.Path, epath.Path(copy.address) / path.relative_to(copy.path))
    return path


def push() -> None:
    """Writes back what has changed in the copies since the last time; nothing if there are none.

    Raises:
        OSError: another command has written there, or the bucket cannot be reached.
    """
    for copy in _copies.values():
        copy.push()


def remove(path: pathlib.Path) -> None:
    """Removes a file or directory, if it is there; of a copy, in the bucket too."""
    for copy in _copies.values():
        if path.is_relative_to(copy.path):
            copy.delete(path)
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def readable(message: str) -> str:
    """A message with addresses in place of copies' paths."""
    for copy in _copies.values():
        message = message.replace(str(copy.path), copy.address)
    return message


def remove_copies() -> None:
    """Removes the copies, as the end of the process does unless it is killed."""
    if _copies:
        _copies.clear()
        _scratch().cleanup()
        _scratch.cache_clear()


class _Seen(NamedTuple):
    """An object and its file when they were the same: its generation, and the file's stamp."""

    generation: int
    stamp: tuple[int, int]


class _Copy:
    """Of a directory or file in a bucket.

    Attributes:
        address: what is copied.
        path: the copy.
    """

    def __init__(self, bucket: str, key: str):
        self.address = f'{_SCHEME}{bucket}/{key}'
        self._key = key
        self._seen: dict[pathlib.Path, _Seen] = {}
        with _told(self.address):
            self._bucket = _client(self.address).bucket(bucket)
        # The last names are those of the address, by which models and tasks are called.
        self.path = pathlib.Path(tempfile.mkdtemp(dir=_scratch().name), bucket, key)

    def pull(self) -> None:
        """Reads what is new in the bucket."""
        with _told(self.address):
            for path, blob in self._new():
                path.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(path)
                self._seen[path] = _Seen(blob.generation, _stamp(path))

    def push(self) -> None:
        """As `buckets.push`, in the order in which the files were written."""
        paths = [self.path] if self.path.is_file() else self.path.rglob('*')
        files = [path for path in paths if self._is_copied(path) and path.is_file()]
        stamps = {path: _stamp(path) for path in sorted(files, key=_stamp)}
        changed = {
            path: stamp
            for path, stamp in stamps.items()
            if path not in self._seen or self._seen[path].stamp != stamp
        }
        if not changed:
            return
        with _told(self.address):
            # Of all, before the first is written: one that comes too late must write none.
            for path, blob in self._new():
                if path in stamps:
                    self._seen[path] = _Seen(self._same(path, blob), stamps[path])
            for path, stamp in changed.items():
                if path not in self._seen or self._seen[path].stamp != stamp:
                    self._seen[path] = _Seen(self._write(path), stamp)

    def delete(self, removed: pathlib.Path) -> None:
        """Deletes the object of a file, or the objects of a directory."""
        with _told(self.address):
            for path in [path for path in self._seen if path.is_relative_to(removed)]:
                self._bucket.delete_blobs([self._blob(path)], on_error=lambda blob: None)
                del self._seen[path]

    def _new(self) -> Iterator[tuple[pathlib.Path, Any]]:
        """Objects that are not as they were seen, and the paths of their copies."""
        for blob in self._bucket.client.list_blobs(self._bucket, prefix=self._key):
            name = pathlib.PurePosixPath(blob.name)
            if blob.name.endswith('/') or not name.is_relative_to(self._key):
                continue
            path = self.path / name.relative_to(self._key)
            known = self._seen.get(path)
            if self._is_copied(path) and (not known or known.generation != blob.generation):
                yield path, blob

    def _write(self, path: pathlib.Path) -> int:
        """The generation of what is written."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(path)
        known = self._seen[path].generation if path in self._seen else 0
        try:
            blob.upload_from_string(path.read_bytes(), if_generation_match=known)
        except PreconditionFailed:
            blob.reload()
            return self._same(path, blob)
        return blob.generation

    def _same(self, path: pathlib.Path, blob: Any) -> int:
        """The generation of an object that holds what its copy does.

        So it is after an answer that was lost: what was to be written is there already.
        """
        content = path.read_bytes() if path.is_file() else b''
        if blob.md5_hash != base64.b64encode(hashlib.md5(content).digest()).decode():
            raise OSError(
                f'Another command has written to {self.address}: this one stops, and what it has '
                'not saved yet is lost.'
            )
        return blob.generation

    def _blob(self, path: pathlib.Path) -> Any:
        return self._bucket.blob('/'.join([self._key, *path.relative_to(self.path).parts]))

    def _is_copied(self, path: pathlib.Path) -> bool:
        """Whether a file is not Orbax's, nor one that is only there for a while."""
        parts = path.relative_to(self.path).parts
        return not any(part == _CHECKPOINTS or part.startswith('.') for part in parts)


_copies: dict[tuple[str, str], _Copy] = {}


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    shutdown.at_end(remove_copies)
    return tempfile.TemporaryDirectory(prefix='malora_jax-', ignore_cleanup_errors=True)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Tells a file from what it was, and orders files by when they were written."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _client(address: str) -> Any:
    import fsspec
    from google.cloud import storage

    # Orbax lists directories through it, to which other processes write.
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
    try:
        return storage.Client()
    except OSError as error:
        raise UserError(
            f'{address}: the Google Cloud project is not known; set GOOGLE_CLOUD_PROJECT to it.'
        ) from error


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Tells the storage's errors in one line."""
    if not importlib.util.find_spec('gcsfs'):
        raise UserError(f"{address} needs gcsfs: run pip install 'malora_jax[gcs]'.")
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    try:
        yield
    except auth.DefaultCredentialsError as error:
        raise UserError(
            f'{address}: there are no credentials of Google Cloud; run gcloud auth '
            'application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file.'
        ) from error
    except api.NotFound as error:
        raise UserError(f'{address}: there is no such bucket.') from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise UserError(
            f'{address}: no access with these credentials ({error.message}).'
        ) from error
    except (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
        reason = str(error).partition('\n')[0]
        raise OSError(
            f'{address} cannot be reached ({reason}); the same command goes on from what it saved.'
        ) from error

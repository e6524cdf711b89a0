"""Directories in Google Cloud Storage (gs://BUCKET/PATH), mirrored in local copies.

An object store has no append, lock or rename, and objects are written as a whole. A command
therefore works on a local copy of a directory's files (`localize`), and uploads changed files at
certain points (`upload_changes`). Checkpoints are not copied, because Orbax reads and writes them
in the bucket (`remote_path`).

Nothing is locked in the bucket. Instead, `upload_changes` checks that the objects are still those
that were last read or written. If a second run starts in the same directory, its first upload
changes the objects. The first run notices this at its next `upload_changes`, and stops.
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
from malora_jax.errors import UserError, missing_extra

_SCHEME = 'gs://'
_CHECKPOINTS = 'checkpoints'


def localize(address: str | os.PathLike[str]) -> pathlib.Path:
    """Return the local path of a directory or file, after downloading it if it is in a bucket.

    Later calls for the same address download only new and changed objects.

    Args:
        address: Local path, or gs://BUCKET/PATH.

    Raises:
        UserError: The address is malformed, the extra `gcs` is not installed, there are no
            credentials or no access, or the bucket does not exist.
        OSError: The bucket cannot be reached.
    """
    text = os.fspath(address)
    if '://' not in text:
        return pathlib.Path(os.path.expanduser(text))
    bucket, _, key = text.removeprefix(_SCHEME).partition('/')
    key = key.rstrip('/')
    if not (text.startswith(_SCHEME) and bucket and key):
        raise UserError(f'{text} must be a local path or gs://BUCKET/PATH.')
    if (bucket, key) not in _copies:
        _copies[bucket, key] = _LocalCopy(bucket, key)
    _copies[bucket, key].download_changes()
    return _copies[bucket, key].path


def remote_path(path: pathlib.Path) -> pathlib.Path:
    """Return the bucket address of a path in a local copy, as an `epath.Path` of etils.

    A path outside the local copies is returned unchanged.
    """
    for copy in _copies.values():
        if path.is_relative_to(copy.path):
            from etils import epath

            # An etils path has the methods of pathlib.Path, but is not a subclass.
            return cast(pathlib.Path, epath.Path(copy.address) / path.relative_to(copy.path))
    return path


def upload_changes() -> None:
    """Upload the files of all local copies that have changed since the last call.

    Raises:
        UserError: The bucket does not exist, or there is no access.
        OSError: Another command has written to the directory, or the bucket cannot be reached.
    """
    for copy in _copies.values():
        copy.upload_changes()


def remove(path: pathlib.Path) -> None:
    """Remove a file or directory if it exists, and its objects if the path is in a local copy."""
    for copy in _copies.values():
        if path.is_relative_to(copy.path):
            copy.delete(path)
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def with_remote_paths(message: str) -> str:
    """Return a message with the paths of local copies replaced by their bucket addresses."""
    for copy in _copies.values():
        message = message.replace(str(copy.path), copy.address)
    return message


def remove_local_copies() -> None:
    """Remove the local copies; called automatically when the process exits, unless it is killed."""
    if _copies:
        _copies.clear()
        _scratch_directory().cleanup()
        _scratch_directory.cache_clear()


class _SyncedState(NamedTuple):
    """State of a file after its last download or upload, when both copies were equal.

    Attributes:
        generation: Generation number of the object in the bucket. It changes with each write.
        stamp: Modification time (ns) and size (bytes) of the local file.
    """

    generation: int
    stamp: tuple[int, int]


class _LocalCopy:
    """A local copy of a directory or file in a bucket.

    Attributes:
        address: Address of the original, gs://BUCKET/PATH.
        path: Local path of the copy.
    """

    def __init__(self, bucket: str, key: str):
        self.address = f'{_SCHEME}{bucket}/{key}'
        self._key = key
        self._synced: dict[pathlib.Path, _SyncedState] = {}
        with _translate_errors(self.address):
            self._bucket = _client(self.address).bucket(bucket)
        # End the path like the address, because models and tasks are named after their paths.
        self.path = pathlib.Path(tempfile.mkdtemp(dir=_scratch_directory().name), bucket, key)

    def download_changes(self) -> None:
        """Download new and changed objects."""
        with _translate_errors(self.address):
            for path, blob in self._changed_objects():
                path.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(path)
                self._synced[path] = _SyncedState(blob.generation, _stamp(path))

    def upload_changes(self) -> None:
        """Upload changed files, in the order in which they were written.

        Raises:
            UserError: The bucket does not exist, or there is no access.
            OSError: Another command has written to the directory, or the bucket cannot be reached.
        """
        paths = [self.path] if self.path.is_file() else self.path.rglob('*')
        files = [path for path in paths if self._is_copied(path) and path.is_file()]
        stamps = {path: _stamp(path) for path in sorted(files, key=_stamp)}
        changed = {
            path: stamp
            for path, stamp in stamps.items()
            if path not in self._synced or self._synced[path].stamp != stamp
        }
        if not changed:
            return
        with _translate_errors(self.address):
            # Check all objects before the first upload, so that a conflict prevents all uploads.
            for path, blob in self._changed_objects():
                if path in stamps:
                    self._synced[path] = _SyncedState(
                        self._matching_generation(path, blob), stamps[path]
                    )
            for path, stamp in changed.items():
                if path not in self._synced or self._synced[path].stamp != stamp:
                    self._synced[path] = _SyncedState(self._upload_file(path), stamp)

    def delete(self, removed: pathlib.Path) -> None:
        """Delete the object of a file, or the objects of a directory."""
        with _translate_errors(self.address):
            for path in [path for path in self._synced if path.is_relative_to(removed)]:
                self._bucket.delete_blobs([self._blob(path)], on_error=lambda blob: None)
                del self._synced[path]

    def _changed_objects(self) -> Iterator[tuple[pathlib.Path, Any]]:
        """Yield a pair for each new or changed object of the bucket: its local path, the object."""
        for blob in self._bucket.client.list_blobs(self._bucket, prefix=self._key):
            name = pathlib.PurePosixPath(blob.name)
            if blob.name.endswith('/') or not name.is_relative_to(self._key):
                continue
            path = self.path / name.relative_to(self._key)
            known = self._synced.get(path)
            if self._is_copied(path) and (not known or known.generation != blob.generation):
                yield path, blob

    def _upload_file(self, path: pathlib.Path) -> int:
        """Upload a file, and return the generation number of the new object in the bucket.

        Raises:
            OSError: Another command has written the object.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(path)
        known = self._synced[path].generation if path in self._synced else 0
        try:
            blob.upload_from_string(path.read_bytes(), if_generation_match=known)
        except PreconditionFailed:
            blob.reload()
            return self._matching_generation(path, blob)
        return blob.generation

    def _matching_generation(self, path: pathlib.Path, blob: Any) -> int:
        """Check that an object equals the local file, and return its generation number.

        The object has changed since this process last read or wrote it. If the contents are equal,
        an upload by this process succeeded, but the response was lost.

        Args:
            path: Local file.
            blob: Changed object of the bucket.

        Raises:
            OSError: The contents differ, because another command has written the object.
        """
        content = path.read_bytes() if path.is_file() else b''
        if blob.md5_hash != base64.b64encode(hashlib.md5(content).digest()).decode():
            raise OSError(
                f'Another command has written to {self.address}: this command stops, and its '
                'unsaved progress is lost.'
            )
        return blob.generation

    def _blob(self, path: pathlib.Path) -> Any:
        return self._bucket.blob('/'.join([self._key, *path.relative_to(self.path).parts]))

    def _is_copied(self, path: pathlib.Path) -> bool:
        """Return whether a file is mirrored: all are, except checkpoints and temporary files."""
        parts = path.relative_to(self.path).parts
        return not any(part == _CHECKPOINTS or part.startswith('.') for part in parts)


# Local copies by bucket and path in the bucket.
_copies: dict[tuple[str, str], _LocalCopy] = {}


@functools.cache
def _scratch_directory() -> tempfile.TemporaryDirectory:
    shutdown.register_cleanup(remove_local_copies)
    return tempfile.TemporaryDirectory(prefix='malora_jax-', ignore_cleanup_errors=True)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Return a file's modification time (ns) and size, to detect changes and to sort by age."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _client(address: str) -> Any:
    import fsspec
    from google.cloud import storage

    # Orbax lists directories with gcsfs, whose cache would miss files of other processes.
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
    try:
        return storage.Client()
    except OSError as error:
        raise UserError(
            f'{address}: the Google Cloud project is not known; set GOOGLE_CLOUD_PROJECT to it.'
        ) from error


@contextlib.contextmanager
def _translate_errors(address: str) -> Iterator[None]:
    """Translate errors of Google Cloud Storage from the `with` block into one-line messages.

    Raises:
        UserError: The extra `gcs` is not installed, there are no credentials or no access, or the
            bucket does not exist.
        OSError: The bucket cannot be reached.
    """
    if not importlib.util.find_spec('gcsfs'):
        raise missing_extra(f'{address} needs gcsfs', 'gcs')
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
            f'{address} cannot be reached ({reason}); the same command resumes from what it saved.'
        ) from error

"""Store of the public datasets on disk: each one is prepared once, then read by index.

A dataset is stored as ArrayRecord files in the directory `malora_NAME/VERSION` of the store.
TensorFlow Datasets (TFDS) writes and reads these files; TensorFlow itself is never imported. A
dataset is written to a temporary directory, which is renamed at the end. So if preparation is
killed, only that dataset is started again; finished datasets and downloaded files remain. Prepared
datasets are read without network access.

The lock file pins the data: the commit on the Hugging Face hub or the local files, the SHA-256 of
each file, and the number of rows. It is written when a dataset is first prepared. An existing
entry, such as one copied from another machine, determines the commit to download, and the data are
checked against it. A dataset without an entry counts as not prepared.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from malora_jax import cloud_storage, files, hub
from malora_jax.data.datasets import BrokenRowError, Dataset, get_dataset
from malora_jax.data.file_rows import check_file
from malora_jax.data.stored_items import StoredItems, read_items, write_items
from malora_jax.errors import UserError, unknown_name
from malora_jax.progress import track

# Version of the storage format. A dataset in another version is kept, and the dataset is prepared
# again in a directory next to it.
VERSION = '1.0.0'
LOCK_FILE = 'malora_jax.lock.json'
_MUTEX_FILE = '.malora_jax.busy'
_REMEDY = 'restore it from a copy, or choose another data.directory'
_LOCK_FIELDS = ('source', 'revision', 'sha256', 'rows', 'left_out')


class _LockEntry(TypedDict):
    """Entry of a dataset in the lock file; `left_out` has the message of each skipped row."""

    source: str
    revision: str | None
    sha256: dict[str, list[str]]
    rows: dict[str, int]
    left_out: list[str]


_Paths = Mapping[str, Sequence[pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class Store:
    """A directory with prepared public datasets.

    For example::

        store = open_store('~/datasets')
        dataset = get_dataset('gsm8k')
        store.prepare(dataset)
        items = store.items(dataset, 'train')

    Attributes:
        directory: Directory of all datasets and the lock file.
        sources: Entries 'DATASET/SPLIT=PATH' for splits that are read from a local file instead of
            the hub. If a dataset has such entries, only these splits are prepared.
        skip_broken: Whether broken rows are skipped and listed in the lock file, instead of raising
            an error.
    """

    directory: pathlib.Path
    sources: tuple[str, ...] = ()
    skip_broken: bool = False

    @property
    def lock_path(self) -> pathlib.Path:
        """Path of the lock file."""
        return self.directory / LOCK_FILE

    def prepare(self, dataset: Dataset) -> None:
        """Prepare a dataset, unless it is stored already, and check it against the lock file.

        Raises:
            UserError: The dataset cannot be downloaded or read, differs from the lock file, or was
                prepared from another source. If `skip_broken` is False, also: the dataset has a
                broken row, or it was prepared earlier without its broken rows.
            OSError: The directory cannot be written to, or the disk is full.
        """
        if not self._is_prepared(dataset):
            if self.directory.exists() and not self.directory.is_dir():
                raise UserError(f'data.directory: {self.directory} is not a directory.')
            with (
                files.provisional_directory(self.directory, _MUTEX_FILE),
                _exclusive_lock(self.directory),
            ):
                if not self._is_prepared(dataset):
                    self._prepare(dataset)
                    cloud_storage.upload_changes()
        self._check_prepared(dataset)

    def items(self, dataset: Dataset, split: str) -> StoredItems:
        """Return a split of a prepared dataset.

        Raises:
            UserError: The dataset is not prepared, lacks this split, or is damaged. Or its number
                of rows differs from the number that the lock file states.
        """
        if not self._is_prepared(dataset):
            raise UserError(
                f'Dataset {dataset.name!r} is not prepared in {self.directory}: run '
                'python -m experiments.prepare with the same config.'
            )
        path, rows = self._path(dataset), self.lock_entry(dataset)['rows']
        if split not in rows:
            raise UserError(
                f'{path} has no split {split!r}, only {" and ".join(rows)}: name a file for it in '
                f"data.sources, '{dataset.name}/{split}=PATH'."
            )
        items = read_items(path, split)
        if len(items) != rows[split]:
            raise UserError(
                f'{path} has {len(items):,} rows in its split {split!r}, but {LOCK_FILE} says '
                f'{rows[split]:,}: remove that directory, and it will be prepared again.'
            )
        return items

    def lock_entry(self, dataset: Dataset) -> dict[str, Any]:
        """Return the dataset's entry in the lock file; {} if there is none.

        Raises:
            UserError: The file is not a valid lock file.
        """
        return self._lock_entries().get(dataset.name, {})

    def _lock_entries(self) -> dict[str, dict[str, Any]]:
        path = self.lock_path
        return files.read_json(path, dict[str, _LockEntry], _REMEDY) if path.exists() else {}

    def _path(self, dataset: Dataset) -> pathlib.Path:
        return self.directory / f'malora_{dataset.name}' / VERSION

    def _is_prepared(self, dataset: Dataset) -> bool:
        return self._path(dataset).is_dir() and bool(self.lock_entry(dataset))

    def _local(self, dataset: Dataset) -> dict[str, str]:
        """Return the path of the local file of each split that has one."""
        places = (source.partition('=')[::2] for source in self.sources)
        return {
            target.partition('/')[2]: os.path.expanduser(path)
            for target, path in places
            if target.partition('/')[0] == dataset.name
        }

    def _source(self, dataset: Dataset) -> str:
        local = self._local(dataset)
        if local:
            return ', '.join(f'{split}={path}' for split, path in sorted(local.items()))
        return dataset.repository

    def _prepare(self, dataset: Dataset) -> None:
        lock = self.lock_entry(dataset)
        self._check_source(dataset, lock)
        paths, revision = self._find_or_download(dataset, lock.get('revision'))
        digests = _digests(paths)
        self._check_locked(dataset, lock, 'sha256', digests)
        broken: list[str] = []
        parsed = {split: self._parse_items(dataset, split, paths[split], broken) for split in paths}
        with _scratch(self.directory) as scratch:
            rows = write_items(dataset, scratch, VERSION, parsed)
            self._check_locked(dataset, lock, 'rows', rows)
            path = self._path(dataset)
            shutil.rmtree(path, ignore_errors=True)  # Remove a dataset without a lock entry.
            if not lock:
                facts = (self._source(dataset), revision, digests, rows, broken)
                locks = {
                    **self._lock_entries(),
                    dataset.name: dict(zip(_LOCK_FIELDS, facts, strict=True)),
                }
                files.write_json(self.lock_path, locks)
            # The rename comes last, so that every dataset in place has a lock entry.
            path.parent.mkdir(exist_ok=True)
            os.replace(scratch / path.relative_to(self.directory), path)

    def _find_or_download(
        self, dataset: Dataset, revision: str | None
    ) -> tuple[dict[str, list[pathlib.Path]], str | None]:
        """Find a dataset's local files, or else download its files from the hub.

        Args:
            dataset: Dataset to find.
            revision: Commit to download; None = the newest one.

        Returns:
            The files of each split, and the commit on the hub. The commit is None for local files.
        """
        local = self._local(dataset)
        if local:
            return {split: [cloud_storage.localize(path)] for split, path in local.items()}, None
        if not dataset.repository:
            files = ' and '.join(dataset.splits.values())
            entries = ', '.join(f"'{dataset.name}/{split}=PATH'" for split in dataset.splits)
            raise UserError(
                f'Dataset {dataset.name!r} is not on the Hugging Face Hub: download {files} from '
                f'{dataset.origin} and set data.sources to ({entries},).'
            )
        patterns = dataset.patterns
        remedy = f"name local files in data.sources, such as '{dataset.name}/train=PATH'"
        if revision:
            remedy += f', or remove {dataset.name!r} from {self.lock_path}'
        root = hub.download_snapshot(
            dataset.repository,
            [pattern for of_split in patterns.values() for pattern in of_split],
            repo_type='dataset',
            alternative=remedy,
            revision=revision or dataset.revision,
        )
        paths = {
            split: sorted(path for pattern in of_split for path in root.glob(pattern))
            for split, of_split in patterns.items()
        }
        for split, matches in paths.items():
            if not matches:
                raise UserError(
                    f'{dataset.repository} at {root.name} has no files {patterns[split][0]} for '
                    f'the split {split!r} of dataset {dataset.name!r}: {remedy}.'
                )
        return paths, root.name

    def _parse_items(
        self, dataset: Dataset, split: str, paths: Sequence[pathlib.Path], broken: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield pairs (index, item) for the rows of a split; the index counts the items from 0.

        Rows of 'test' that are not scored are left out. A broken row raises an error. But if
        `skip_broken` is True, the row is skipped, and its message is appended to `broken`.
        """
        rows = (row for path in paths for row in dataset.read(path))
        title, count, num_skipped = f'prepare {dataset.name}/{split}', 0, len(broken)
        for row in track(rows, title, 'row'):
            try:
                if split != 'test' or dataset.is_scored(row):
                    yield count, dataclasses.asdict(dataset.parse(row))
                    count += 1
            except BrokenRowError as error:
                if not self.skip_broken:
                    hint = '; set data.skip_broken to True to skip such rows.'
                    raise BrokenRowError(str(error).rstrip('.') + hint) from error
                broken.append(str(error))
        if not count:
            reason = broken[num_skipped] if broken[num_skipped:] else f'{paths[0]} has none.'
            raise UserError(
                f'Split {split!r} of dataset {dataset.name!r} has no usable row: {reason}'
            )

    def _check_prepared(self, dataset: Dataset) -> None:
        lock = self.lock_entry(dataset)
        self._check_source(dataset, lock)
        local = {
            split: [cloud_storage.localize(path)] for split, path in self._local(dataset).items()
        }
        source_changed = lock['source'] != self._source(dataset)
        # A prepared dataset no longer needs its local files. But if they still exist, or if the
        # config names other files, their content must match the lock file.
        if local and (source_changed or all(path.exists() for [path] in local.values())):
            self._check_locked(dataset, lock, 'sha256', _digests(local))
        if lock['left_out'] and not self.skip_broken:
            raise UserError(
                f'Dataset {dataset.name!r} in {self.directory} was prepared without its broken '
                f'rows ({len(lock["left_out"]):,}), but data.skip_broken is False; the first: '
                f'{lock["left_out"][0]}'
            )

    def _check_source(self, dataset: Dataset, lock: Mapping[str, Any]) -> None:
        """Check that a dataset's source is the one in its lock entry.

        If both are local files, their paths may differ: `_check_locked` compares their digests. A
        dataset that is not on the hub needs no entry in `sources` once it is prepared.
        """
        is_local = self._local(dataset) or not dataset.repository
        if not lock or (is_local and lock['revision'] is None):
            return
        if lock['source'] != self._source(dataset):
            raise UserError(
                f'Dataset {dataset.name!r} in {self.directory} is from {lock["source"]}, not from '
                f'{self._source(dataset)}: choose another data.directory, or remove it from '
                f'{LOCK_FILE} there to prepare it again.'
            )

    def _check_locked(
        self, dataset: Dataset, lock: Mapping[str, Any], key: str, actual: Mapping[str, Any]
    ) -> None:
        locked = lock[key] if lock else actual
        for split in sorted({*locked, *actual}):
            if locked.get(split) != actual.get(split):
                raise UserError(
                    f'{dataset.name}/{split} is not what {self.lock_path} says ({key} '
                    f'{actual.get(split)}, not {locked.get(split)}): restore its files, or remove '
                    f'{dataset.name!r} from the lock file to prepare it again.'
                )


def check_sources(sources: Sequence[str]) -> None:
    """Check the entries of a config's `data.sources`.

    For example::

        check_sources(['gsm8k/train=train.jsonl'])

    Raises:
        UserError: An entry is malformed or repeated, or its dataset or split does not exist.
    """
    seen = []
    for source in sources:
        key, equals, path = source.partition('=')
        name, slash, split = key.partition('/')
        if not (equals and slash and path):
            raise UserError(
                f"data.sources holds {source!r}; write 'DATASET/SPLIT=PATH', such as "
                "'gsm8k/train=train.jsonl'."
            )
        dataset = get_dataset(name)
        if split not in dataset.splits:
            raise unknown_name(f'split of {name!r} in data.sources', split, dataset.splits)
        if key in seen:
            raise UserError(f'data.sources names a file for {key} twice; a split has one file.')
        seen.append(key)


def open_store(
    directory: str = '', sources: Sequence[str] = (), skip_broken: bool = False
) -> Store:
    """Return the store that a config describes, by default in the directory of TFDS.

    For example::

        store = open_store('~/datasets', ['gsm8k/train=train.jsonl'])

    Args:
        directory: Directory of the store, or gs://BUCKET/PATH; '' = the environment variable
            TFDS_DATA_DIR, or ~/tensorflow_datasets if it is not set.
        sources: Entries 'DATASET/SPLIT=PATH' for splits that are read from local files.
        skip_broken: Whether broken rows are skipped instead of raising an error.
    """
    path = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return Store(cloud_storage.localize(path), tuple(sources), skip_broken)


@contextlib.contextmanager
def _exclusive_lock(directory: pathlib.Path) -> Iterator[None]:
    """Hold the directory's lock within a `with` block, so that one process at a time prepares.

    Other processes wait for the lock. If the process that holds it dies, the lock is released.
    """
    with (directory / _MUTEX_FILE).open('w') as busy:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Waiting for another process that prepares {directory}.', file=sys.stderr)
            fcntl.flock(busy, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Create an empty temporary directory for a `with` block, which removes it when it ends."""
    path = directory / '.malora_jax.tmp'
    shutil.rmtree(path, ignore_errors=True)  # A killed process may have left it behind.
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _digests(paths: _Paths) -> dict[str, list[str]]:
    """Return the SHA-256 digest of each file of each split."""
    return {split: [_digest(path) for path in of_split] for split, of_split in paths.items()}


def _digest(path: pathlib.Path) -> str:
    check_file(path)
    with path.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()

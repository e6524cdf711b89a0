"""The public datasets on disk: prepared once as TFDS datasets, then read by index.

A dataset is stored as ArrayRecord in the directory `malora_NAME/VERSION` of the store, which TFDS
reads with and without TensorFlow; nothing here imports it. It is written elsewhere and renamed at
the end, so one that was killed is begun anew, while finished datasets and downloaded files stay.
What is prepared is read without network.

The lock file says which rows there are: the commit of the hub or the local files, the files'
SHA-256, the number of rows. It is written at the first preparation. One that is there already, such
as a copy from another machine, decides the commit that is downloaded and is checked. A dataset that
it does not name is not prepared.
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

import tqdm

from malora_jax import buckets, files, hub
from malora_jax.data.benchmarks import BrokenRowError, Dataset, get_dataset
from malora_jax.data.rows import check_file
from malora_jax.data.stored_items import Items, read_items, write_items
from malora_jax.errors import UserError, unknown_name

# Of the stored form; another one is prepared anew beside it.
VERSION = '1.0.0'
LOCK = 'malora_jax.lock.json'
_BUSY = '.malora_jax.busy'
_REMEDY = 'restore it from a copy, or choose another data.directory'
_LOCKED = ('source', 'revision', 'sha256', 'rows', 'left_out')


class _Lock(TypedDict):
    source: str
    revision: str | None
    sha256: dict[str, list[str]]
    rows: dict[str, int]
    left_out: list[str]


_Paths = Mapping[str, Sequence[pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class Store:
    """Where datasets are prepared.

    Attributes:
        directory: of all datasets and the lock file.
        sources: 'DATASET/SPLIT=PATH' each: splits that are read from a local file instead of the
            hub; of such a dataset only these splits are prepared.
        skip_broken: whether a broken row is left out and listed in the lock file, or an error.
    """

    directory: pathlib.Path
    sources: tuple[str, ...] = ()
    skip_broken: bool = False

    @property
    def lock_path(self) -> pathlib.Path:
        """The lock file."""
        return self.directory / LOCK

    def prepare(self, dataset: Dataset) -> None:
        """Stores a dataset, if it is not there yet.

        Raises:
            UserError: it cannot be downloaded or read, a row is broken or was left out though none
                may be, it is not what the lock file says, or it was prepared from another source.
            OSError: the directory cannot be written to, or the disk is full.
        """
        if not self._is_prepared(dataset):
            if self.directory.exists() and not self.directory.is_dir():
                raise UserError(f'data.directory: {self.directory} is not a directory.')
            with files.removed_if_refused(self.directory, _BUSY), _alone(self.directory):
                if not self._is_prepared(dataset):
                    self._prepare(dataset)
                    buckets.push()
        self._check_prepared(dataset)

    def items(self, dataset: Dataset, split: str) -> Items:
        """A split of a prepared dataset.

        Raises:
            UserError: the dataset is not prepared, without this split, damaged, or has not the
                locked rows.
        """
        if not self._is_prepared(dataset):
            raise UserError(
                f'Dataset {dataset.name!r} is not prepared in {self.directory}: run '
                'python -m experiments.prepare with the same config.'
            )
        path, rows = self._path(dataset), self.lock(dataset)['rows']
        if split not in rows:
            raise UserError(
                f'{path} has no split {split!r}, only {" and ".join(rows)}: name a file for it in '
                f"data.sources, '{dataset.name}/{split}=PATH'."
            )
        items = read_items(path, split)
        if len(items) != rows[split]:
            raise UserError(
                f'{path} has {len(items):,} rows in its split {split!r}, and {LOCK} says '
                f'{rows[split]:,}: remove that directory, and it is prepared anew.'
            )
        return items

    def lock(self, dataset: Dataset) -> dict[str, Any]:
        """What the lock file says of a dataset; {} if nothing.

        Raises:
            UserError: it is not a lock file.
        """
        return self._locks().get(dataset.name, {})

    def _locks(self) -> dict[str, dict[str, Any]]:
        path = self.lock_path
        return files.read_json(path, dict[str, _Lock], _REMEDY) if path.exists() else {}

    def _path(self, dataset: Dataset) -> pathlib.Path:
        return self.directory / f'malora_{dataset.name}' / VERSION

    def _is_prepared(self, dataset: Dataset) -> bool:
        return self._path(dataset).is_dir() and bool(self.lock(dataset))

    def _local(self, dataset: Dataset) -> dict[str, str]:
        """The local file of each split."""
        places = (source.partition('=')[::2] for source in self.sources)
        return {
            place.partition('/')[2]: os.path.expanduser(path)
            for place, path in places
            if place.partition('/')[0] == dataset.name
        }

    def _source(self, dataset: Dataset) -> str:
        local = self._local(dataset)
        if local:
            return ', '.join(f'{split}={path}' for split, path in sorted(local.items()))
        return dataset.repository

    def _prepare(self, dataset: Dataset) -> None:
        lock = self.lock(dataset)
        self._check_source(dataset, lock)
        paths, revision = self._files(dataset, lock.get('revision'))
        digests = _digests(paths)
        self._check_locked(dataset, lock, 'sha256', digests)
        broken: list[str] = []
        parsed = {split: self._parsed(dataset, split, paths[split], broken) for split in paths}
        with _scratch(self.directory) as scratch:
            rows = write_items(dataset, scratch, VERSION, parsed)
            self._check_locked(dataset, lock, 'rows', rows)
            path = self._path(dataset)
            shutil.rmtree(path, ignore_errors=True)  # One that the lock file does not name.
            if not lock:
                facts = (self._source(dataset), revision, digests, rows, broken)
                locks = {**self._locks(), dataset.name: dict(zip(_LOCKED, facts, strict=True))}
                files.write_json(self.lock_path, locks)
            # Last, so that whatever is there is locked.
            path.parent.mkdir(exist_ok=True)
            os.replace(scratch / path.relative_to(self.directory), path)

    def _files(
        self, dataset: Dataset, revision: str | None
    ) -> tuple[dict[str, list[pathlib.Path]], str | None]:
        """The files of each split, and the commit that they are of."""
        local = self._local(dataset)
        if local:
            return {split: [buckets.local(path)] for split, path in local.items()}, None
        patterns = dataset.patterns
        instead = f"name local files in data.sources, such as '{dataset.name}/train=PATH'"
        if revision:
            instead += f', or remove {dataset.name!r} from {self.lock_path}'
        root = hub.snapshot(
            dataset.repository,
            [pattern for of_split in patterns.values() for pattern in of_split],
            kind='dataset',
            instead=instead,
            revision=revision or dataset.revision,
        )
        paths = {
            split: sorted(path for pattern in of_split for path in root.glob(pattern))
            for split, of_split in patterns.items()
        }
        for split, found in paths.items():
            if not found:
                raise UserError(
                    f'{dataset.repository} at {root.name} has no files {patterns[split][0]} for '
                    f'the split {split!r} of dataset {dataset.name!r}: {instead}.'
                )
        return paths, root.name

    def _parsed(
        self, dataset: Dataset, split: str, paths: Sequence[pathlib.Path], broken: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbered items; the messages of those that are left out are appended to `broken`."""
        rows = (row for path in paths for row in dataset.read(path))
        title, count, earlier = f'prepare {dataset.name}/{split}', 0, len(broken)
        for row in tqdm.tqdm(rows, title, unit=' rows', dynamic_ncols=True):
            try:
                if split != 'test' or dataset.scored(row):
                    yield count, dataclasses.asdict(dataset.parse(row))
                    count += 1
            except BrokenRowError as error:
                if not self.skip_broken:
                    hint = '; data.skip_broken = True would leave such rows out.'
                    raise BrokenRowError(str(error).rstrip('.') + hint) from error
                broken.append(str(error))
        if not count:
            reason = broken[earlier] if broken[earlier:] else f'{paths[0]} has none to use.'
            raise UserError(f'The split {split!r} of {dataset.name!r} would have no row: {reason}')

    def _check_prepared(self, dataset: Dataset) -> None:
        lock = self.lock(dataset)
        self._check_source(dataset, lock)
        local = {split: [buckets.local(path)] for split, path in self._local(dataset).items()}
        moved = lock['source'] != self._source(dataset)
        # What was prepared does not need its files any more, but other ones would be other data.
        if local and (moved or all(path.exists() for [path] in local.values())):
            self._check_locked(dataset, lock, 'sha256', _digests(local))
        if lock['left_out'] and not self.skip_broken:
            raise UserError(
                f'Dataset {dataset.name!r} in {self.directory} was prepared with broken rows left '
                f'out ({len(lock["left_out"]):,}), which data.skip_broken = False does not allow; '
                f'the first: {lock["left_out"][0]}'
            )

    def _check_source(self, dataset: Dataset, lock: Mapping[str, Any]) -> None:
        """Checks that the source is the locked one; of local files, their content will tell."""
        if not lock or (self._local(dataset) and lock['revision'] is None):
            return
        if lock['source'] != self._source(dataset):
            raise UserError(
                f'Dataset {dataset.name!r} in {self.directory} is from {lock["source"]}, not from '
                f'{self._source(dataset)}: choose another data.directory, or remove it from '
                f'{LOCK} there to prepare it anew.'
            )

    def _check_locked(
        self, dataset: Dataset, lock: Mapping[str, Any], key: str, found: Mapping[str, Any]
    ) -> None:
        locked = lock[key] if lock else found
        for split in sorted({*locked, *found}):
            if locked.get(split) != found.get(split):
                raise UserError(
                    f'{dataset.name}/{split} is not what {self.lock_path} says ({key} '
                    f'{found.get(split)}, not {locked.get(split)}): restore its files, or remove '
                    f'{dataset.name!r} from the lock file to prepare it anew.'
                )


def check_sources(sources: Sequence[str]) -> None:
    """Checks the form of a config's `data.sources`.

    Raises:
        UserError: an entry of another form, a dataset or split that does not exist, or one that is
            there twice.
    """
    places = []
    for source in sources:
        place, equals, path = source.partition('=')
        name, slash, split = place.partition('/')
        if not (equals and slash and path):
            raise UserError(
                f"data.sources holds {source!r}; write 'DATASET/SPLIT=PATH', such as "
                "'gsm8k/train=train.jsonl'."
            )
        dataset = get_dataset(name)
        if split not in dataset.splits:
            raise unknown_name(f'split of {name!r} in data.sources', split, dataset.splits)
        if place in places:
            raise UserError(f'data.sources names a file for {place} twice; a split has one file.')
        places.append(place)


def open_store(
    directory: str = '', sources: Sequence[str] = (), skip_broken: bool = False
) -> Store:
    """The store of a config; without a directory, where TFDS has its datasets."""
    path = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return Store(buckets.local(path), tuple(sources), skip_broken)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[None]:
    """Waits until no other process prepares anything here; a killed one's lock is gone with it."""
    with (directory / _BUSY).open('w') as busy:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Waiting for another process that prepares {directory}.', file=sys.stderr)
            fcntl.flock(busy, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty directory to write to, which is gone at the end."""
    path = directory / '.malora_jax.tmp'
    shutil.rmtree(path, ignore_errors=True)  # Left behind by a kill.
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _digests(paths: _Paths) -> dict[str, list[str]]:
    """SHA-256 of each file of each split."""
    return {split: [_digest(path) for path in of_split] for split, of_split in paths.items()}


def _digest(path: pathlib.Path) -> str:
    check_file(path)
    with path.open('rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()

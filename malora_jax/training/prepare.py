"""Preparation of a run's public datasets, and digests that detect changed data."""

from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import data
from malora_jax.training.config import RunConfig, run_config


def prepare_datasets(config: Mapping[str, Any]) -> str:
    """Download and prepare every public dataset that a config trains on or scores.

    Args:
        config: Nested config as written in configs/.

    Returns:
        A plain-text summary: the source of each dataset, the number of its rows by split, and the
        number of rows that were skipped because they are broken. Then the overlap of each test set
        with each training set, if they share a question.

    Raises:
        UserError: The config is invalid, or a dataset cannot be prepared.
    """
    run = run_config(config)
    store, names = run.data.store, run.public_datasets
    if not names:
        return 'Nothing to prepare: this config names no public dataset.'
    lines = [_line(name, _prepare_dataset(store, name)) for name in names]
    overlaps = [_overlap_line(overlap) for overlap in _overlaps(run, names)]
    return '\n'.join(
        [
            f'Prepared in {store.directory}, with {store.lock_path.name}:',
            *lines,
            *(['Test questions that are also in a training set, which are kept:'] * bool(overlaps)),
            *overlaps,
        ]
    )


def data_digests(run: RunConfig) -> dict[str, Any]:
    """Return digests of a run's data, which are compared when the run resumes.

    Public datasets are prepared first if necessary.

    Args:
        run: Config of the run.

    Returns:
        SHA-256 of each data file by its name, and the digests of each public dataset by its name.

    Raises:
        UserError: A file is missing, or a dataset cannot be prepared.
    """
    store = run.data.store
    locks = {name: _prepare_dataset(store, name)['sha256'] for name in run.public_datasets}
    return data.file_digests(run.data.file_tasks) | locks


def _prepare_dataset(store: data.Store, name: str) -> dict[str, Any]:
    dataset = data.get_dataset(name)
    store.prepare(dataset)
    return store.lock_entry(dataset)


def _overlaps(run: RunConfig, names: Sequence[str]) -> list[data.Overlap]:
    store = run.data.store

    def with_split(split: str, tasks: Sequence[str]) -> list[str]:
        public = (name for name in tasks if name in names)
        return [n for n in public if split in store.lock_entry(data.get_dataset(n))['rows']]

    scored = run.evaluation.tasks or run.data.tasks
    train, test = with_split('train', run.data.tasks), with_split('test', scored)
    return data.count_overlaps(store, train, test)


def _overlap_line(overlap: data.Overlap) -> str:
    return (
        f'  {overlap.test}: {overlap.shared:,} of {overlap.questions:,} are in {overlap.train}, '
        f'{overlap.same_options:,} of them with the same options'
    )


def _line(name: str, lock: Mapping[str, Any]) -> str:
    rows = ', '.join(f'{count:,} {split}' for split, count in lock['rows'].items())
    revision = f' at {lock["revision"]}' if lock['revision'] else ''
    left_out = f'; broken rows skipped: {len(lock["left_out"]):,}' if lock['left_out'] else ''
    return f'  {name}: {rows}, from {lock["source"]}{revision}{left_out}'

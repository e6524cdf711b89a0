"""The public datasets of a run, prepared ahead of it, and what tells that its data are the same."""

from collections.abc import Mapping
from typing import Any

from malora_jax import data
from malora_jax.training.config import RunConfig, run_config


def prepare(config: Mapping[str, Any]) -> str:
    """Prepares every public dataset that a config trains on or scores.

    Args:
        config: as written in configs/.

    Returns:
        What there is, in plain text: where each dataset is from, its rows, and those left out.

    Raises:
        UserError: a mistake in the config, or a dataset that cannot be prepared.
    """
    run = run_config(config)
    store, names = run.data.store, run.benchmarks
    if not names:
        return 'Nothing to prepare: this config names no public dataset.'
    lines = [_line(name, _prepared(store, name)) for name in names]
    return '\n'.join([f'Prepared in {store.directory}, with {store.lock_path.name}:', *lines])


def data_digests(run: RunConfig) -> dict[str, Any]:
    """What a run's data are, to compare when it goes on: SHA-256 of every file, by its name.

    Public datasets are prepared if they are not.

    Raises:
        UserError: a file is missing, or a dataset cannot be prepared.
    """
    store = run.data.store
    locks = {name: _prepared(store, name)['sha256'] for name in run.benchmarks}
    return data.file_digests(run.data.file_tasks) | locks


def _prepared(store: data.Store, name: str) -> dict[str, Any]:
    dataset = data.get_dataset(name)
    store.prepare(dataset)
    return store.lock(dataset)


def _line(name: str, lock: Mapping[str, Any]) -> str:
    rows = ', '.join(f'{count:,} {split}' for split, count in lock['rows'].items())
    revision = f' at {lock["revision"]}' if lock['revision'] else ''
    left_out = f'; broken and left out: {len(lock["left_out"]):,}' if lock['left_out'] else ''
    return f'  {name}: {rows}, from {lock["source"]}{revision}{left_out}'

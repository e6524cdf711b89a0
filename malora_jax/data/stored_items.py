"""Items of public datasets as ArrayRecord files, the format of TensorFlow Datasets (TFDS).

Items are read by index. TensorFlow is not imported.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.data.datasets import Dataset, Item
from malora_jax.errors import UserError


class StoredItems(Sequence[Item]):
    """The items of a split, read from disk by index."""

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        """Wrap the records that `as_data_source` of a TFDS builder returns."""
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)  # Python's sequence iteration stops at this error.
        return Item(**{name: _decode_value(value) for name, value in self._records[index].items()})


def read_items(path: pathlib.Path, split: str) -> StoredItems:
    """Open a split, and read its first and last item to detect a truncated file.

    Args:
        path: Directory `malora_NAME/VERSION` of the dataset.
        split: Name of an existing split.

    Raises:
        UserError: The dataset is damaged.
    """
    tfds = _tfds()
    try:
        items = StoredItems(tfds.builder_from_directory(path).as_data_source(split))
        for index in {0, len(items) - 1}:
            items[index]
    except Exception as error:  # TFDS, protobuf and ArrayRecord raise many kinds of errors.
        reason = str(error).partition('\n')[0].rstrip('.')
        raise UserError(
            f'{path} is damaged ({reason}): remove that directory, and it will be prepared again.'
        ) from error
    return items


def write_items(
    dataset: Dataset,
    directory: pathlib.Path,
    version: str,
    splits: Mapping[str, Iterable[tuple[int, dict[str, Any]]]],
) -> dict[str, int]:
    """Write items as a TFDS dataset, without the progress bars and messages of TFDS.

    Args:
        dataset: Dataset that the items belong to.
        directory: Directory in which `malora_NAME/VERSION` is created.
        version: Version of the storage format.
        splits: Pairs (index, item) of each split. The index counts from 0; the item is a dict of
            the fields of `Item`.

    Returns:
        The number of items of each split.

    Raises:
        UserError: A split is too large.
        OSError: The disk is full.
    """
    tfds = _tfds()
    text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
    kinds: dict[Any, Any] = {str: text, tuple[str, ...]: texts, int: np.int64}
    features = {field.name: kinds[field.type] for field in dataclasses.fields(Item)}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, name-defined]
        """TFDS builder that writes the given items of a public dataset to files."""

        VERSION = tfds.core.Version(version)
        name = f'malora_{dataset.name}'

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f'{dataset.repository}, {dataset.config}. {dataset.evidence}',
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return dict(splits)

        def _generate_examples(self, **_: Any) -> Any:
            raise AssertionError('Splits are given whole.')

    builder = Builder(data_dir=directory, file_format='array_record')
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise UserError(
            f'Dataset {dataset.name!r} has a split of more than 1 GB, which is more than TFDS can '
            'hold without TensorFlow.'
        ) from error
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        # ArrayRecord reports a full disk as a RuntimeError.
        raise OSError(errno.ENOSPC, str(error)) from error
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def _decode_value(value: Any) -> Any:
    """Convert a stored value: bytes to text, arrays and lists to tuples, numbers to int."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | list):
        return tuple(_decode_value(item) for item in value)
    return int(value)


def _tfds() -> Any:
    """Return the package TFDS, imported on first use because it takes half a second."""
    return importlib.import_module('tensorflow_datasets')

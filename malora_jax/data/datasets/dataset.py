"""Definition of a public dataset: its location on the Hugging Face hub and its row parser."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from malora_jax.data.datasets.item import Item
from malora_jax.data.file_rows import Row, read_rows


def _every(row: Row) -> bool:
    return True


@dataclass(frozen=True)
class Dataset:
    """A dataset on the Hugging Face hub; local files with the same columns can replace it.

    For example::

        Dataset(
            'metamathqa', 'meta-math/MetaMathQA', 'default', {'train': 'train'},
            instructions.pair_parser('query', 'response'), evidence='Columns: the card.',
        )

    Attributes:
        name: Name of the dataset in configs.
        repository: Repository on the hub, OWNER/NAME; '' = the dataset is not on the hub, so that
            `data.sources` must name local files.
        config: Name of the dataset's configuration (subset) on the hub, or a glob pattern of names
            whose rows are read one after another.
        splits: Name of the split on the hub, by our name. Our names are 'train', 'validation' and
            'test'; a dataset may lack some of these splits. 'a+b' = the rows of a, then those of b.
            Without a repository, the name of the published file.
        parse: Function that returns the item of a row, or raises `BrokenRowError`.
        evidence: Sources against which the fields above were verified.
        read: Function that returns the rows of one file.
        is_scored: Function that returns whether a row of 'test' is scored; other rows are skipped.
        multi_reference: Whether `group_answers` merges the 'test' rows with the same question into
            one item.
        has_subjects: Whether the passage of an item introduces its subject. It is then written once
            in front of the few-shot examples, which are the first ones of the same subject.
        origin: Location of the published files, if they are not on the hub.
    """

    revision: ClassVar[str] = 'refs/convert/parquet'

    name: str
    repository: str
    config: str
    splits: Mapping[str, str]
    parse: Callable[[Row], Item]
    evidence: str
    read: Callable[[pathlib.Path], Iterator[Row]] = read_rows
    is_scored: Callable[[Row], bool] = _every
    multi_reference: bool = False
    has_subjects: bool = False
    origin: str = ''

    @property
    def patterns(self) -> dict[str, list[str]]:
        """Glob patterns of the Parquet files on the hub, by our split name.

        The files are on the branch that the class attribute `revision` names.
        """
        return {
            split: [f'{self.config}/{part}/*.parquet' for part in of_hub.split('+')]
            for split, of_hub in self.splits.items()
        }

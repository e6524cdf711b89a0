"""Selection of the items that a stage processes: all, the first ones, or a random sample."""

import dataclasses
import hashlib
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator

from malora_jax.data.file_rows import Row
from malora_jax.errors import out_of_range


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selection of input items.

    A sample has its own order, that of a hash of the seed and the id of an item. So it does not
    depend on the order of the input, and a larger sample begins with the smaller one: a stage
    whose output has the smaller sample only adds the other items.

    Attributes:
        sample: Number of items in a random sample; 0 = all items, in the order of the input.
        limit: Maximum number of items, the first ones of the input or sample; 0 = no limit.
    """

    sample: int = 0
    limit: int = 0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0:
                raise out_of_range(f'--{name}', value, 'at least 0')

    def __str__(self) -> str:
        given = [f'--{name}={value}' for name, value in dataclasses.asdict(self).items() if value]
        return ' '.join(given) or 'all items'

    @property
    def extension(self) -> str:
        """Advice that names the flag with which an output of these items grows; '' = none."""
        if self.sample:
            return 'to extend it, use a larger --sample; otherwise, '
        return (
            'to extend it, use a larger --limit without --sample; otherwise, ' if self.limit else ''
        )

    @property
    def max_items(self) -> int | None:
        """Maximum number of items; None = all."""
        return min((size for size in (self.sample, self.limit) if size), default=None)

    def select(self, rows: Iterable[Row], seed: int) -> Iterator[Row]:
        """Yield the selected rows. The rows of a sample are held in memory.

        Args:
            rows: All rows of the input.
            seed: Random seed of the sample.
        """
        if self.sample:
            rows = smallest_hashes(rows, self.max_items or 0, seed)
        return itertools.islice(rows, self.max_items)

    def contains(self, other: 'Selection') -> bool:
        """Return whether the items of another selection are the first items of this one."""
        if bool(self.sample) != bool(other.sample):
            return False
        largest = float('inf')
        return (self.max_items or largest) >= (other.max_items or largest)


ALL_ITEMS = Selection()


def smallest_hashes(rows: Iterable[Row], number: int, seed: int) -> list[Row]:
    """Return a random sample of rows: those with the smallest hashes of seed and id, in order.

    Args:
        rows: Rows; the hash of a row without an id depends on all of its fields.
        number: Size of the sample; it is smaller if there are fewer rows.
        seed: Random seed.
    """

    def key(row: Row) -> bytes:
        # JSON escapes unpaired surrogates, which cannot be encoded.
        identity = json.dumps(row.fields.get('id', row.fields), sort_keys=True, default=str)
        return hashlib.sha256(f'{seed}/sample/{identity}'.encode()).digest()

    return heapq.nsmallest(number, rows, key)

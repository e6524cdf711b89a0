"""Records of metrics.jsonl without the fields that depend on the duration of the steps."""

from collections.abc import Iterable, Mapping
from typing import Any

TIMES = ('tokens_per_second', 'train_time_s')


def without_times(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the records; two runs of one config have equal ones."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]

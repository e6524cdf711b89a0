"""A run's metrics: one JSON object a step, and the same for TensorBoard."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorboardX

from malora_jax import files


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete records of a metrics file; a line that a kill cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text('utf-8').splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's event files; a context manager.

    Attributes:
        records: what the file held up to the step that the run continues from.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Opens both; records after `step`, from a run that was killed, are removed.

        Args:
            workdir: the run's directory.
            step: the step that the run continues from; 0 for a new run.
        """
        path = workdir / 'metrics.jsonl'
        self.records = [record for record in read_metrics(path) if record['step'] <= step]
        files.write_json_lines(path, self.records)
        self._file = path.open('a', encoding='utf-8')
        self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._board.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Writes one step's record, which names its `step`."""
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        self.records.append(dict(record))
        for name, value in record.items():
            if name != 'step':
                self._board.add_scalar(name, value, int(record['step']))

"""A run's metrics: one JSON object a step, and the same for TensorBoard."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from malora_jax import buckets, files
from malora_jax.distributed import hosts
from malora_jax.errors import UserError
from malora_jax.training import run_files

# TensorBoard reads again every 30 seconds or so; each flush waits for the disk.
_FLUSH_SECONDS = 10


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's event files; a context manager.

    Of several processes the first one writes, and the others only remember.

    Attributes:
        records: what the file held up to the step that the run continues from.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Opens both; records after `step`, from a run that was killed, are removed.

        Args:
            workdir: the run's directory.
            step: the step that the run continues from; 0 for a new run.

        Raises:
            UserError: a record is broken, or those of steps before that are missing.
        """
        path = workdir / 'metrics.jsonl'
        past = run_files.read_metrics(path) if path.exists() else []
        self.records: list[dict[str, Any]] = [record for record in past if record['step'] <= step]
        if len(self.records) != step:
            raise UserError(
                f'{path} has {len(self.records)} of the {step} steps of the newest checkpoint: '
                'restore it, or start anew in another --workdir.'
            )
        self._writes = hosts.is_first()
        if not self._writes:
            return
        files.write_json_lines(path, self.records)
        self._file = path.open('a', encoding='utf-8')
        # Written anew: what a killed run's writer still held in memory is in the records too.
        buckets.remove(workdir / 'tensorboard')
        (workdir / 'tensorboard').mkdir()
        # Not its SummaryWriter, whose thread dies of a full disk and leaves this one waiting.
        self._board = EventsWriter(str(workdir / 'tensorboard' / 'events'))
        for record in self.records:
            self._show(record)
        self._flush_board()

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Writes one step's record, which names its `step`."""
        self.records.append(dict(record))
        if not self._writes:
            return
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        self._show(record)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush_board()

    def push(self) -> None:
        """If the run is in a bucket, puts all there; before a checkpoint, which needs its steps."""
        if self._writes:
            self._flush_board()
            buckets.push()

    def _show(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != 'step':
                event = Event(step=int(record['step']), summary=scalar(name, value))
                event.wall_time = time.time()
                self._board.write_event(event)

    def _flush_board(self) -> None:
        self._board.flush()
        self._flushed = time.monotonic()

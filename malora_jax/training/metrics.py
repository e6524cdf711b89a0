"""Writer of a run's metrics: one JSON object per step, and the same values for TensorBoard."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from malora_jax import cloud_storage, files
from malora_jax.distributed import hosts
from malora_jax.errors import UserError
from malora_jax.training import run_files

# Seconds between flushes to TensorBoard's event file. Each flush waits for the disk, and
# TensorBoard reloads only about every 30 seconds.
_FLUSH_SECONDS = 10


class MetricWriter:
    """Context manager that appends to `metrics.jsonl` and to TensorBoard's event files.

    Of several processes only the first one writes. The others only keep the records in memory.

    Attributes:
        records: All records of the run so far, including those that the file already held up to
            the step from which the run resumed.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Open `metrics.jsonl` and the event file, and remove all records after `step`.

        A killed run may leave records of steps after its newest checkpoint.

        Args:
            workdir: Directory of the run.
            step: Step from which the run resumes; 0 for a new run.

        Raises:
            UserError: A record is broken, or a record of a step up to `step` is missing.
        """
        path = workdir / 'metrics.jsonl'
        past = run_files.read_metrics(path) if path.exists() else []
        self.records: list[dict[str, Any]] = [record for record in past if record['step'] <= step]
        if len(self.records) != step:
            raise UserError(
                f'{path} has records of only {len(self.records)} of the {step} steps up to the '
                'newest checkpoint: restore the file, or start a new run in another --workdir.'
            )
        self._is_writer = hosts.is_first_process()
        if not self._is_writer:
            return
        files.write_json_lines(path, self.records)
        self._file = path.open('a', encoding='utf-8')
        # Rewrite the event files from the records, because a killed run may have lost events that
        # were not flushed.
        cloud_storage.remove(workdir / 'tensorboard')
        (workdir / 'tensorboard').mkdir()
        # The thread of tensorboardX's SummaryWriter dies when the disk is full, and the main thread
        # then waits forever.
        self._event_writer = EventsWriter(str(workdir / 'tensorboard' / 'events'))
        for record in self.records:
            self._write_events(record)
        self._flush_board()

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_writer:
            self._file.close()
            self._event_writer.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Append the record of one step.

        Args:
            record: Finite values by name; the key `step` has the number of the step.
        """
        self.records.append(dict(record))
        if not self._is_writer:
            return
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        self._write_events(record)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush_board()

    def push(self) -> None:
        """Flush TensorBoard's event file, and upload all changed files to cloud storage.

        Nothing is uploaded if the directory of the run is not in a cloud storage bucket. Call this
        before a checkpoint is saved. A run can resume from a checkpoint only if the bucket has the
        records of all steps up to the checkpoint.
        """
        if self._is_writer:
            self._flush_board()
            cloud_storage.upload_changes()

    def _write_events(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != 'step':
                event = Event(step=int(record['step']), summary=scalar(name, value))
                event.wall_time = time.time()
                self._event_writer.write_event(event)

    def _flush_board(self) -> None:
        self._event_writer.flush()
        self._flushed = time.monotonic()

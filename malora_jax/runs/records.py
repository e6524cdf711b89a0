"""Compact records of finished runs, which are small enough to be committed with the code.

A record has what reports on runs need: config, results, the metrics of each step, and the score and
loss of each held-out question. It has neither weights nor texts, and names each question by a
hash.
"""

import hashlib
import io
import json
import lzma
import pathlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from malora_jax import files
from malora_jax.errors import UserError
from malora_jax.runs.loading import LoadedRun
from malora_jax.training import run_files
from malora_jax.training.workdir import BASE_FILE, CONFIG_FILE

SUFFIX = '.tar.xz'
# File that only a restored run has.
RECORD_FILE = 'record.json'
_SIGNIFICANT_DIGITS = 5


def write_record(run: pathlib.Path, record: pathlib.Path) -> None:
    """Write the record of a finished run; the same run always gives the same bytes.

    Args:
        run: Directory of the run.
        record: Path of the record, a tar archive compressed with xz.

    Raises:
        UserError: A file of the run is missing or broken.
    """
    loaded = LoadedRun(run)
    contents = {
        RECORD_FILE: json.dumps({'format': 1}),
        CONFIG_FILE: (run / CONFIG_FILE).read_text('utf-8'),
        run_files.METRICS_FILE: _json_lines(map(_round, loaded.records)),
        'answers_before.jsonl': _json_lines(map(_without_texts, loaded.answers_before)),
        'answers_after.jsonl': _json_lines(map(_without_texts, loaded.answers_after)),
    }
    if (run / BASE_FILE).exists():
        contents[BASE_FILE] = (run / BASE_FILE).read_text('utf-8')
    # The last file, because a run that has it is finished: an interrupted restoration is repeated.
    contents[run_files.RESULTS_FILE] = (run / run_files.RESULTS_FILE).read_text('utf-8')
    record.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(record) as temporary, tarfile.open(temporary, 'w:xz') as archive:
        for name, text in contents.items():
            data = text.encode()
            entry = tarfile.TarInfo(name)  # Without owner and time, which are not the run's.
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def restore_record(record: pathlib.Path, run: pathlib.Path) -> None:
    """Write the files of a record into a run directory, for reports to read.

    Args:
        record: Path of the record.
        run: Directory of the run; it is created if it does not exist.

    Raises:
        UserError: The record is not a complete tar archive.
    """
    try:
        with tarfile.open(record) as archive:
            contents = {
                entry.name: file.read() for entry in archive if (file := archive.extractfile(entry))
            }
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise UserError(f'{record} is not a record of a run ({error}): restore it.') from error
    run.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        with files.atomic_write(run / pathlib.PurePath(name).name) as temporary:
            temporary.write_bytes(data)


def _without_texts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of an answers file, with a hash in place of the question."""
    question = hashlib.sha256(answer['question'].encode()).hexdigest()[:8]
    numbers = {name: answer[name] for name in ('score', 'nats', 'tokens')}
    return _round({'task': answer['task'], 'question': question, **numbers})


def _round(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose floats have few significant digits, which halves the record."""
    return {
        name: float(f'{value:.{_SIGNIFICANT_DIGITS}g}') if isinstance(value, float) else value
        for name, value in row.items()
    }


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return ''.join(json.dumps(row, separators=(',', ':')) + '\n' for row in rows)

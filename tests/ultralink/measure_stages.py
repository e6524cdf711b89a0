"""Measure the speed of the stage `dialogues`, and whether the memory of `documents` is flat.

`python -m tests.ultralink.measure_stages requests [SEGMENTS [CONCURRENCY]]` makes dialogues with a
stub in a separate process, and prints requests per second and the CPU time per request on both
sides. `python -m tests.ultralink.measure_stages memory [DOCUMENTS]` makes segments, and prints the
memory of the process after each tenth of the documents.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from malora_jax.ultralink import paper_statistics
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.shards import StageManifest
from malora_jax.ultralink.stage import StageRun, format_counts
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.language_identification import identify_language
from malora_jax.ultralink.text.tokens import load_token_counter
from tests.helpers.openai_stub import document
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.ultralink.helpers import write_rows

CODES = list(paper_statistics.LANGUAGES)


@contextlib.contextmanager
def stub_process() -> Iterator[tuple[str, int]]:
    """Start a stub endpoint, and yield its address and process ID."""
    command = [sys.executable, '-m', 'tests.helpers.openai_stub']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process in seconds."""
    fields = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def resident_mib() -> float:
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.partition('VmRSS:')[2].split()[0]) / 1024


def measure_requests(root: pathlib.Path, segments: int, concurrency: int) -> None:
    rows = (
        {**document(CODES[i % 5], i), 'id': str(i), 'language': CODES[i % 5]}
        for i in range(segments)
    )
    source = write_rows(root / 'segments.jsonl', rows)
    write_tiny_gguf(root / 'tiny.gguf')
    count = load_token_counter(str(root / 'tiny.gguf'))
    config = DialoguesConfig(context_tokens=100_000)  # A token of this tokenizer is a byte or two.
    identify_language('Loaded before.')

    async def make(address: str) -> StageManifest:
        async with open_model(ModelChoice('m', root / 'c.sqlite', concurrency, address)) as model:
            given = StageRun(
                config,
                [source],
                root / 'out',
                model=model,
                token_counter=count,
                concurrency=concurrency,
            )
            return await STAGES['dialogues'].run(given)

    os.environ['OPENAI_API_KEY'] = 'any'
    with stub_process() as (address, process):
        start, ours, theirs = time.monotonic(), cpu_seconds(os.getpid()), cpu_seconds(process)
        print(format_counts(asyncio.run(make(address))))
        wall_s = time.monotonic() - start
        ours, theirs = cpu_seconds(os.getpid()) - ours, cpu_seconds(process) - theirs
    with sqlite3.connect(root / 'c.sqlite') as connection:
        [[requests]] = connection.execute('SELECT COUNT(*) FROM replies').fetchall()
    print(f'{requests:,} requests in {wall_s:.1f} s: {requests / wall_s:.0f} requests/s.')
    print(
        f'CPU time per request: {1000 * ours / requests:.2f} ms in this process, '
        f'{1000 * theirs / requests:.2f} ms in the stub.'
    )


def measure_memory(root: pathlib.Path, number: int) -> None:
    source = root / 'wiki.jsonl'
    with source.open('w', encoding='utf-8') as file:
        for i in range(number):
            file.write(json.dumps(document('en', i, lines=5), ensure_ascii=False) + '\n')
    config = DocumentsConfig('en', min_document_tokens=200, min_segment_tokens=100)
    print(f'{source.stat().st_size / 2**20:.0f} MiB of documents.', flush=True)
    over = threading.Event()

    def watch() -> None:
        shards = 0
        while not over.wait(0.05):
            written = len(list((root / 'out').glob('rows-*'))) * 1000
            if written >= shards + number // 10:
                shards = written
                print(f'{written:,} documents: {resident_mib():.0f} MiB', flush=True)

    threading.Thread(target=watch, daemon=True).start()
    start = time.monotonic()
    given = StageRun(
        config, [source], root / 'out', token_counter=load_token_counter('smollm2-135m')
    )
    found = asyncio.run(STAGES['documents'].run(given))
    over.set()
    print(format_counts(found))
    print(f'{number / (time.monotonic() - start):.0f} documents/s.')


if __name__ == '__main__':
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        if words[:1] == ['requests']:
            given = [int(word) for word in words[1:]]
            measure_requests(pathlib.Path(made), *(given + [1000, 64][len(given) :]))
        elif words[:1] == ['memory']:
            measure_memory(pathlib.Path(made), int(words[1]) if words[1:] else 100_000)
        else:
            sys.exit(__doc__)

"""Rows of conversations, made up."""

import json
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any


def conversation(language: str, subset: str, number: int, turns: int = 1) -> dict[str, Any]:
    """A conversation that resembles no other one."""
    random_ = random.Random(f'{language}/{subset}/{number}')
    data = []
    for _ in range(2 * turns):
        if language == 'zh':
            data.append(''.join(chr(random_.randrange(0x4E00, 0x9FA0)) for _ in range(30)))
        else:
            data.append(' '.join(f'mot{random_.randrange(10**6)}' for _ in range(20)))
    row = {'id': f'{language}-{subset}-{number}', 'language': language, 'subset': subset}
    return {**row, 'data': data}


def write(path: pathlib.Path, rows: Iterable[Any]) -> pathlib.Path:
    """Writes JSON Lines."""
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
    path.write_text(''.join(lines), 'utf-8')
    return path


def read(paths: Sequence[pathlib.Path]) -> list[Any]:
    """The rows of JSON Lines."""
    lines = [line for path in paths for line in path.read_text('utf-8').split('\n')]
    return [json.loads(line) for line in lines if line]


def written(directory: pathlib.Path) -> list[Any]:
    """The rows of a stage's directory."""
    return read(sorted(directory.glob('rows-*.jsonl')))

"""Helpers for the tests of UltraLink."""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from malora_jax.ultralink.llm.chat import ModelRequest, Reply
from tests.helpers.fork_server import run_module


class WordCounter:
    """Fake tokenizer that counts words and Chinese characters."""

    fingerprint = name = 'words'

    def __call__(self, text: str) -> int:
        chinese = sum('一' <= character <= '鿿' for character in text)
        return chinese + sum(not any('一' <= c <= '鿿' for c in word) for word in text.split())


class FakeModel:
    """A fake model that answers with a function's result.

    Attributes:
        requests: Received requests.
    """

    name = 'told'

    def __init__(self, answer: Callable[[ModelRequest], str | Reply]):
        self._say = answer
        self.requests: list[ModelRequest] = []

    async def complete(self, request: ModelRequest) -> Reply:
        self.requests.append(request)
        said = self._say(request)
        return said if isinstance(said, Reply) else Reply(said, 'stop', 1)


def run(*arguments, **environment):
    """Run `experiments.ultralink` in a separate process."""
    return run_module(
        *('experiments.ultralink', *map(str, arguments)),
        timeout=300,
        **{'OPENAI_API_KEY': 'sk-secret', **environment},
    )


def run_successfully(*arguments):
    """Run `experiments.ultralink`, which must succeed, and return its output."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_rows(path: pathlib.Path, rows: Iterable[Any]) -> pathlib.Path:
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
    path.write_text(''.join(lines), 'utf-8')
    return path


def read_rows(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a stage's directory, read without the project's reader."""
    shards = sorted(directory.glob('rows-*.jsonl'))
    return [json.loads(line) for shard in shards for line in shard.open(encoding='utf-8')]


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """Return the name and content of every file of a stage's output, except for its lock."""
    files = [path for path in directory.iterdir() if path.name != '.lock']
    return {path.name: path.read_bytes() for path in files}

"""Loadable files of the tokenizers that make_tokenizers.py has recorded."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.tokenizer import Tokenizer, from_gguf, from_huggingface
from tests.helpers.paths import FIXTURES
from tests.helpers.tokenizer_gguf import write_tokenizer_gguf

NAMES = ('llama3', 'qwen2', 'llama2', 'mistral')


@functools.cache
def read_recording(name: str) -> dict[str, Any]:
    """Return the content of `tokenizers/NAME.json`."""
    path = FIXTURES / 'tokenizers' / f'{name}.json'
    return json.loads(path.read_text('utf-8'))


def write_directory(path: pathlib.Path, name: str, **settings: Any) -> pathlib.Path:
    """Write tokenizer.json and tokenizer_config.json, the latter with some settings replaced."""
    path.mkdir(exist_ok=True)
    files = read_recording(name)['directory']
    (path / 'tokenizer.json').write_text(json.dumps(files['tokenizer.json']), 'utf-8')
    config = json.dumps(files['tokenizer_config.json'] | settings)
    (path / 'tokenizer_config.json').write_text(config, 'utf-8')
    return path


def from_directory(path: pathlib.Path, name: str, **settings: Any) -> Tokenizer:
    """Return the tokenizer of a recorded directory, with some settings replaced."""
    return from_huggingface(write_directory(path, name, **settings))


def from_metadata(path: pathlib.Path, name: str, **changes: Any) -> Tokenizer:
    """Return the tokenizer of a GGUF file with recorded metadata; None drops a key."""
    metadata = read_recording(name)['gguf'] | changes
    write_tokenizer_gguf(path, {k: v for k, v in metadata.items() if v is not None})
    return from_gguf(GGUFFile(path))

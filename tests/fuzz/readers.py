"""Readers for each kind of file, also as commands: `python -m tests.fuzz.readers KIND PATH`."""

import pathlib
import sys

from experiments import cli
from malora_jax import data
from malora_jax.analysis.report import write_report
from malora_jax.data.file_tasks import FileTask
from malora_jax.export.adapter import open_adapter
from malora_jax.export.peft import read_peft
from malora_jax.models import preset
from malora_jax.models.loading.base_model import load_base, model_config
from malora_jax.sweeps import status
from malora_jax.training import goodput
from malora_jax.training.restore import read_run_config
from malora_jax.ultralink import shards
from malora_jax.ultralink.llm import cache


def read_base(path: pathlib.Path) -> None:
    """Load a GGUF file or Hugging Face directory, and use its tokenizer and chat template."""
    config = model_config('auto', str(path), 'float32')
    tokenizer = load_base(config, str(path)).tokenizer
    tokenizer.decode(tokenizer.encode('Hello, wörld!'))
    if tokenizer.chat_template is not None:
        data.get_template('chat').prompt(tokenizer, 'Hello?')


def read_data(path: pathlib.Path) -> None:
    """Read a user's data file."""
    FileTask('mine', str(path), 'question', 'answer', 'exact_match').split(0, 0, 4)


def read_run(path: pathlib.Path) -> None:
    """Read a finished run in each way in which the project does."""
    write_report([path.parent], path.parent / 'report', routing=False)
    goodput.describe(goodput.seconds_by_activity(goodput.read(path)))
    status.read(path.parent, path.name, 'finished')
    status.read(path.parent, path.name, 'running')
    read_run_config(path)


def read_stage(path: pathlib.Path) -> None:
    """Read the output of an UltraLink stage."""
    for row in shards.read([path]):
        shards.text_field(row, 'text')


def read_cache(path: pathlib.Path) -> None:
    """Read the answers in an UltraLink cache."""
    with cache.open_cache(path) as answers:
        answers.get(b'key')
        str(answers.total_tokens)


READERS = {
    'base': read_base,
    'data': read_data,
    'run': read_run,
    'stage': read_stage,
    'cache': read_cache,
    'adapter': open_adapter,
    'peft': lambda path: read_peft(path, preset('tiny')),
}


if __name__ == '__main__':
    kind, path = sys.argv[1:]
    cli.call_and_exit(lambda: READERS[kind](pathlib.Path(path)))

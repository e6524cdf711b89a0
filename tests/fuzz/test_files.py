"""Damaged files are read or refused in one sentence that names them, within resource limits."""

import json
import pathlib
import shutil

import numpy as np
import pyarrow
import pytest
import safetensors.numpy
from pyarrow import parquet

from malora_jax import files
from malora_jax.models import preset
from malora_jax.models.loading.base_model import load_base
from malora_jax.models.loading.params import to_huggingface
from malora_jax.training.goodput import GoodputRecorder
from malora_jax.ultralink import shards
from malora_jax.ultralink.llm import cache
from malora_jax.ultralink.llm.chat import Reply
from tests.fuzz.mutations import damage
from tests.helpers.fork_server import TOO_LONG
from tests.helpers.tiny_gguf import CHAT_TEMPLATE, write_tiny_gguf

pytestmark = pytest.mark.fuzz

QUESTIONS = 20
READERS = 'tests.fuzz.readers'


def write_base(path: pathlib.Path) -> None:
    write_tiny_gguf(path / 'tiny.gguf')


def write_huggingface(path: pathlib.Path) -> None:
    write_tiny_gguf(path / 'tiny.gguf')
    config = preset('tiny')
    base = load_base(config, str(path / 'tiny.gguf'))
    (path / 'tiny.gguf').unlink()
    model = path / 'model'
    model.mkdir()
    safetensors.numpy.save_file(to_huggingface(config, base.params), model / 'model.safetensors')
    (model / 'tokenizer.json').write_text(base.tokenizer.tokenizer_json)
    named = {'eos_token': '<|im_end|>', 'bos_token': {'content': '<|im_start|>'}}
    settings = named | {'add_bos_token': True, 'chat_template': CHAT_TEMPLATE}
    (model / 'tokenizer_config.json').write_text(json.dumps(settings))
    (model / 'special_tokens_map.json').write_text(json.dumps(named))
    written = {
        'architectures': ['LlamaForCausalLM'],
        'vocab_size': config.vocab_size,
        'hidden_size': config.width,
        'intermediate_size': config.hidden,
        'num_hidden_layers': config.num_layers,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.num_kv_heads,
        'head_dim': config.head_width,
        'max_position_embeddings': config.context,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_theta},
        'rms_norm_eps': config.norm_epsilon,
        'tie_word_embeddings': True,
        'torch_dtype': 'float32',
    }
    (model / 'config.json').write_text(json.dumps(written))


def write_data(path: pathlib.Path) -> None:
    rows = [{'question': f'What is {i} + 1?', 'answer': str(i + 1)} for i in range(QUESTIONS)]
    files.write_json_lines(path / 'a.jsonl', rows)
    (path / 'a.json').write_text(json.dumps(rows))
    for name, mark in (('a.csv', ','), ('a.tsv', '\t')):
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        (path / name).write_text('\n'.join(lines))
    parquet.write_table(pyarrow.Table.from_pylist(rows), path / 'a.parquet')


def write_run(path: pathlib.Path) -> None:
    from configs.quickstart import get_config

    run = path / 'run'
    run.mkdir()
    files.write_json(run / 'config.json', get_config('malora').to_dict())
    task = {'before': 0.5, 'after': 0.75, 'loss_before': 2.0, 'loss_after': 1.0, 'examples': 4}
    task |= {'metric': 'exact_match'}
    answer = {'expected': '1', 'answer': '1', 'score': 1.0, 'nats': 2.0, 'tokens': 3, 'more': {}}
    for when in ('before', 'after'):
        rows = [{'task': name, 'question': f'{i}?'} | answer for name in 'ab' for i in range(4)]
        files.write_json_lines(run / f'answers_{when}.jsonl', rows)
    results = {
        **{'model': 'tiny', 'tasks': {'a': task, 'b': task}, 'steps': 5, 'train_time_s': 2.0},
        **{'average': {'before': 0.5, 'after': 0.75}, 'parameters': {'trainable': 12}},
    }
    files.write_json(run / 'results.json', results)
    records = [{'step': i, 'loss': 1 / i, 'tokens_per_second': 5.0} for i in range(1, 6)]
    files.write_json_lines(run / 'metrics.jsonl', records)
    goodput = GoodputRecorder()
    goodput.open(run)
    with goodput.phase('load'):
        goodput.record_step(1)
    goodput.close()


def write_stage(path: pathlib.Path) -> None:
    manifest = shards.StageManifest('translate', {'llm': 'x', 'more': {'a': 1}}, 0, 'digest', 2)
    with shards.open_writer(path / 'out', manifest) as target:
        for number in range(2):
            rows = [{'id': f'{number} {i}', 'text': 'größer'} for i in range(2)]
            target.add(rows, shards.ShardCounts(2, 2, 0, counts={'texts': 2}))
        target.finish()


def write_adapter(path: pathlib.Path) -> None:
    adapter = path / 'adapter'
    adapter.mkdir()
    from dataclasses import asdict

    from malora_jax.adapters import method
    from malora_jax.adapters.settings import settings_of

    manifest = {
        **{'format': 'malora_jax adapter', 'version': 1, 'method': 'lora', 'step': 1},
        **{
            'made_by': 'a test',
            'template': 'plain',
            'adapter': asdict(settings_of(method('lora', rank=2))),
        },
        **{'model': asdict(preset('tiny')), 'weights': '', 'base': 'x', 'tokenizer': 'x'},
        **{'sha256': 'x', 'leaves': {}},
    }
    files.write_json(adapter / 'manifest.json', manifest)


def write_peft(path: pathlib.Path) -> None:
    adapter = path / 'adapter'
    adapter.mkdir()
    tensors = {
        f'base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight': np.ones(
            (2, 64) if part == 'A' else (64, 2), np.float32
        )
        for layer in range(2)
        for part in 'AB'
    }
    safetensors.numpy.save_file(tensors, adapter / 'adapter_model.safetensors')
    config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4.0, 'bias': 'none', 'rank_pattern': {}}
    files.write_json(adapter / 'adapter_config.json', config)


def write_cache(path: pathlib.Path) -> None:
    with cache.open_cache(path / 'answers.sqlite') as answers:
        for key in (b'key', *(b'%d' % i for i in range(100))):
            answers.put(key, Reply('größer' * 20, 'stop', 7))


# Function that writes the files, the reader, its path, and the default number of attempts, by name.
KINDS = {
    'gguf': (write_base, 'base', 'tiny.gguf', 12),
    'huggingface': (write_huggingface, 'base', 'model', 14),
    'data': (write_data, 'data', None, 25),
    'run': (write_run, 'run', 'run', 25),
    'stage': (write_stage, 'stage', 'out', 20),
    'adapter': (write_adapter, 'adapter', 'adapter', 20),
    'cache': (write_cache, 'cache', 'answers.sqlite', 15),
    'peft': (write_peft, 'peft', 'adapter', 15),
}


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files(kind, server, attempts, tmp_path):
    write, reader, name, count = KINDS[kind]
    whole, work = tmp_path / 'whole', tmp_path / 'work'
    whole.mkdir()
    write(whole)
    if name:
        found = server.run(READERS, reader, str(whole / name), directory=whole, limited=True)
        assert found.returncode == 0, found
    for rng in attempts(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work, ignore=shutil.ignore_patterns('comparison'))
        there = sorted(path for path in work.rglob('*') if path.is_file() and path.name != '.lock')
        path = rng.choice(there)
        told = damage(rng, path)
        given = work / name if name else path
        found = server.run(READERS, reader, str(given), directory=work, limited=True)
        why = (told, found.stderr[-700:], found.returncode)
        assert found.returncode in (0, 1, 2), why
        assert 'Traceback' not in found.stderr and TOO_LONG not in found.stderr, why
        if found.returncode:
            [line] = found.stderr.splitlines()
            assert path.name in line or str(given) in line or 'chat template' in line, why

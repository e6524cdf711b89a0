"""Exports use the prompts of training: the same tokens in give the same texts out."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from malora_jax.data import encode_prompt, end_token_id, get_template
from malora_jax.data.chat import _environment
from malora_jax.errors import UserError
from malora_jax.export import merge
from malora_jax.export.adapter import write_adapter
from malora_jax.export.huggingface import write_merged
from malora_jax.export.peft import write_peft
from malora_jax.export.tokenizer_files import write_tokenizer_files
from malora_jax.export.trained_model import TrainedModel
from malora_jax.inference.language_model import LanguageModel
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.models.loading.tokenizer import Tokenizer, from_huggingface
from tests.export.helpers import restored_model, tiny_base
from tests.helpers.models import tiny_model
from tests.helpers.paths import ROOT
from tests.helpers.recorded_tokenizers import NAMES, from_directory, read_recording

pytestmark = [pytest.mark.slow, pytest.mark.export]

QUESTIONS = [
    'Why?',
    ' what is 12 + 30?\nSay it.',
    'in the world',
    'user',
    'a b',
    '7',
    'He is',
    'on',
]
# A Python interpreter with transformers and peft; `make test-export` sets one.
READER = os.environ.get('TRANSFORMERS_PYTHON') or (
    sys.executable if importlib.util.find_spec('transformers') else ''
)


def with_tokens(base: LoadedBase, *, eos: str, bos: str | None, template: str = '') -> LoadedBase:
    """Return the base model with other BOS and end-of-text tokens."""
    tokenizer = base.tokenizer
    named = tokenizer.named_tokens | {'eos_token': eos} | ({'bos_token': bos} if bos else {})
    other = Tokenizer(
        tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json),
        eos_id=tokenizer.token_to_id(eos),
        bos_id=tokenizer.token_to_id(bos) if bos else None,
        chat_template=template or tokenizer.chat_template,
        named_tokens=named,
    )
    return base._replace(tokenizer=other)


def ids_by_the_files(directory: Path, question: str) -> list[int]:
    """Return the prompt's ids as transformers does: rendered, encoded without added tokens."""
    settings = json.loads((directory / 'tokenizer_config.json').read_text('utf-8'))
    environment = _environment()
    environment.restart_timer()
    text = environment.from_string(settings['chat_template']).render(
        messages=[{'role': 'user', 'content': question}],
        add_generation_prompt=True,
        tools=None,
        documents=None,
        **{name: text for name, text in settings.items() if name.endswith('_token')},
    )
    backend = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
    return backend.encode(text, add_special_tokens=False).ids


OWN = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + eos_token }}{% endfor %}"
THINKING = (
    '\n{% for m in messages %}{{ "<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>" }}'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% if enable_thinking is not '
    'defined or enable_thinking %} thinks{% endif %}{% endif %}'
)
# Template, and the changed BOS and end-of-text tokens, by name of the case.
CASES = {
    'chatml': ('chatml', {'eos': '<|endoftext|>', 'bos': None}),
    'chatml with bos': ('chatml', {'eos': '<|im_start|>', 'bos': '<|endoftext|>'}),
    'plain': ('plain', {'eos': '<|endoftext|>', 'bos': '<|im_end|>'}),
    'bare': ('bare', {'eos': '<|endoftext|>', 'bos': None}),
    'chat': ('chat', {'eos': '<|endoftext|>', 'bos': '<|im_start|>'}),
    'thinking': (
        'chat',
        {'eos': '<|im_start|>', 'bos': '<|endoftext|>', 'template': THINKING},
    ),
}


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> LoadedBase:
    """Base model that generates the end tokens of answers more often than by chance."""
    found, _ = tiny_base(tmp_path_factory.mktemp('base'))
    params = jax.tree.map(jnp.copy, found.params)
    params['embedding'] = params['embedding'].at[:3].multiply(2.5)
    return found._replace(params=params)


def model_of(base: LoadedBase, name: str, method: str = 'lora') -> TrainedModel:
    template, tokens = CASES[name]
    found = restored_model(method, with_tokens(base, **tokens), 'tiny.gguf')
    return found._replace(template=get_template(template))


@pytest.mark.parametrize('name', CASES)
def test_a_merged_model_says_how_it_was_trained(base, tmp_path, name):
    found = model_of(base, name)
    tokenizer, template = found.base.tokenizer, found.template
    write_merged(found, tmp_path / 'out')
    config, generation = (
        json.loads((tmp_path / 'out' / file).read_text())
        for file in ('config.json', 'generation_config.json')
    )
    end = end_token_id(tokenizer, template)
    assert config['eos_token_id'] == generation['eos_token_id'] == end
    assert config['bos_token_id'] == generation['bos_token_id'] == tokenizer.bos_id
    assert generation['do_sample'] is False
    for question in QUESTIONS:
        expected = encode_prompt(tokenizer, template, question)
        assert ids_by_the_files(tmp_path / 'out', question) == expected
    # Loaded by us, as a base model.
    again = from_huggingface(tmp_path / 'out')
    assert (again.eos_id, again.bos_id) == (end, tokenizer.bos_id)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert backend.encode('Why?').ids == [*begin, *tokenizer.encode('Why?')]


def test_a_conversation_is_written_as_in_training(base, tmp_path):
    """Answers get their end token, and unknown roles are refused."""
    found = model_of(base, 'chatml with bos')
    write_merged(found, tmp_path / 'out')
    again, chat = from_huggingface(tmp_path / 'out'), get_template('chat')
    messages = [
        {'role': role, 'content': text}
        for role, text in (('user', 'Why?'), ('assistant', ' So.'), ('user', '"And" then?'))
    ]
    ours = found.template.conversation(found.base.tokenizer, messages)
    assert chat.conversation(again, messages) == f'<|endoftext|>{ours}'
    assert chat.get_end_token(again) == '<|im_end|>'
    with pytest.raises(UserError, match='does not support messages of role system'):
        chat.conversation(again, [{'role': 'system', 'content': 'Hm.'}, *messages])


@pytest.mark.parametrize('template', ['chatml', 'plain', 'bare', 'inst'])
@pytest.mark.parametrize('name', NAMES)
def test_tokenizers_of_all_kinds(tmp_path, name, template):
    tokenizer = from_directory(tmp_path / 'base', name)
    chosen = get_template(template)
    found = TrainedModel(LoadedBase(None, {}, tokenizer), tiny_model(), {}, chosen, 'lora', '', 1)
    try:
        end_token_id(tokenizer, chosen)
    except UserError:  # The tokenizer lacks the template's end token.
        return
    (tmp_path / 'out').mkdir()
    write_tokenizer_files(tmp_path / 'out', found)
    for question in QUESTIONS:
        expected = encode_prompt(tokenizer, chosen, question)
        assert ids_by_the_files(tmp_path / 'out', question) == expected


@pytest.mark.parametrize('name', NAMES)
def test_chat_templates_of_models(tmp_path, name):
    for number, chat in enumerate(read_recording(name)['chats']):
        source = chat['template']
        tokenizer = from_directory(tmp_path / f'base{number}', name, chat_template=source)
        chosen = get_template('chat')
        found = TrainedModel(
            LoadedBase(None, {}, tokenizer), tiny_model(), {}, chosen, 'lora', '', 1
        )
        out = tmp_path / f'out{number}'
        out.mkdir()
        write_tokenizer_files(out, found)
        for question in QUESTIONS[:3]:
            expected = encode_prompt(tokenizer, chosen, question)
            assert ids_by_the_files(out, question) == expected


def test_an_adapter_says_how_it_was_trained(base, tmp_path):
    found = model_of(base, 'chatml with bos', 'malora')
    write_adapter(found, tmp_path / 'out')
    prompts = json.loads((tmp_path / 'out' / 'manifest.json').read_text())['prompts']
    assert prompts['eos_token_id'] == 2 and prompts['bos_token_id'] == 0
    assert prompts['chat_template'].startswith('{{ "<|endoftext|>" }}{% for message in messages %}')


@pytest.mark.skipif(not READER, reason='transformers and peft are not installed: make test-export')
def test_transformers_writes_what_we_write(base, tmp_path, monkeypatch):
    """Greedy generation gives the same texts from merged models and with peft."""
    exports = {name: (model_of(base, name), write_merged) for name in CASES}
    for method in ('lora', 'dora'):
        exports[f'peft {method}'] = (model_of(base, 'chatml', method), write_peft)
    cases, expected = {}, {}
    for name, (found, write) in exports.items():
        write(found, tmp_path / name)
        cases[name] = {
            'export': str(tmp_path / name),
            'base': str(tmp_path / 'base') if write is write_peft else None,
            'questions': QUESTIONS,
            'text': 'in the world',
            'new_tokens': 24,
        }
        tokenizer = found.base.tokenizer
        ours = LanguageModel(name, found.model, found.variables, tokenizer, found.template)
        expected[name] = {
            'prompts': [ours.encode_prompt(question) for question in QUESTIONS],
            'answers': ours.generate(QUESTIONS, max_new_tokens=24),
            'text': ours.encode_text('in the world'),
            'end': ours.end_id,
        }
    # The base model alone, for peft.
    monkeypatch.setattr(merge, 'merged_params', lambda found: found.base.params)
    write_merged(model_of(base, 'bare'), tmp_path / 'base')
    found = run_in_transformers(tmp_path, cases)
    for name, values in expected.items():
        assert found[name] == values, (name, found['versions'])
    # Some answers end before the limit, and their lengths differ.
    lengths = {len(model['answers'][0]) for model in expected.values()}
    assert len(lengths) > 2


def run_in_transformers(directory: Path, cases: dict) -> dict:
    (directory / 'cases.json').write_text(json.dumps(cases))
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    command = [READER, '-m', 'tests.export.in_transformers']
    done = subprocess.run(
        [*command, str(directory / 'cases.json'), str(directory / 'results.json')],
        cwd=ROOT,
        env=environment | {'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((directory / 'results.json').read_text())

"""Tokenizers of several kinds against transformers and llama.cpp: see make_tokenizers.py."""

import json

import pytest

from malora_jax.errors import UserError
from malora_jax.models.loading.tokenizer import from_huggingface
from tests.helpers.recorded_tokenizers import (
    NAMES,
    from_directory,
    from_metadata,
    read_recording,
    write_directory,
)

BYTE_LEVEL, SENTENCE_PIECE = ('llama3', 'qwen2'), ('llama2', 'mistral')


@pytest.mark.parametrize('name', NAMES)
def test_tokenizer_json(tmp_path, name):
    tokenizer = from_directory(tmp_path, name)
    for item in read_recording(name)['texts']:
        assert tokenizer.encode(item['text']) == item['ids'], item['text']
        assert tokenizer.decode(item['ids']) == item['decoded'], item['text']


@pytest.mark.parametrize('name', BYTE_LEVEL)
def test_byte_level_gguf(tmp_path, name):
    """Results equal those of transformers; llama.cpp lacks the NFC normalization of Qwen."""
    tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    differing = []
    for item in read_recording(name)['texts']:
        assert tokenizer.encode(item['text']) == item['ids'], item['text']
        assert tokenizer.decode(item['ids']) == item['decoded'], item['text']
        differing += [item['text']] if 'llama_cpp' in item else []
    assert differing == (['e\u0301 is not é, nor ﬁ fi'] if name == 'qwen2' else [])


@pytest.mark.parametrize('name', SENTENCE_PIECE)
def test_sentence_piece_gguf(tmp_path, name):
    """Results equal those of llama.cpp and SentencePiece, which always prepend a space."""
    tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    for item in read_recording(name)['texts']:
        expected = item.get('llama_cpp', item['ids'])
        assert tokenizer.encode(item['text']) == expected, item['text']


@pytest.mark.parametrize('name', SENTENCE_PIECE)
def test_the_older_tokenizer_json_of_llama(tmp_path, name):
    """The published files have a normalizer that prepends the space."""
    write_directory(tmp_path, name)
    content = json.loads((tmp_path / 'tokenizer.json').read_text('utf-8'))
    space = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
    steps = [{'type': 'Prepend', 'prepend': '▁'}, space]
    content |= {'normalizer': {'type': 'Sequence', 'normalizers': steps}, 'pre_tokenizer': None}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content), 'utf-8')
    tokenizer = from_huggingface(tmp_path)
    for item in read_recording(name)['texts']:
        expected = item.get('llama_cpp', item['ids'])
        assert tokenizer.encode(item['text']) == expected, item['text']


def with_special_tokens(name: str, text: str) -> bool:
    return any(token in text for token in special_tokens(name))


def special_tokens(name: str) -> set[str]:
    metadata = read_recording(name)['gguf']
    return {
        t for t, k in zip(metadata['tokens'], metadata['token_type'], strict=True) if k in (2, 3)
    }


@pytest.mark.parametrize('name', NAMES)
def test_texts_come_back_with_all_spaces(tmp_path, name):
    for tokenizer in (from_directory(tmp_path, name), from_metadata(tmp_path / 'a.gguf', name)):
        assert tokenizer.special_tokens == special_tokens(name)
        for item in read_recording(name)['texts']:
            text = item['text']
            if with_special_tokens(name, text) or (name == 'qwen2' and 'llama_cpp' in item):
                continue
            # Metaspace adds no space before a text that starts with one; decoding removes one.
            metaspace = name in SENTENCE_PIECE and tokenizer.encode(' a') == tokenizer.encode('a')
            if not (metaspace and text.startswith(' ')):
                assert tokenizer.decode(tokenizer.encode(text)) == text
            going_on = tokenizer.encode(text, continues=True)
            assert tokenizer.decode(going_on, continues=True) == text


@pytest.mark.parametrize('name', SENTENCE_PIECE)
def test_a_text_that_goes_on_has_no_space_before_it(tmp_path, name):
    tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    whole = tokenizer.encode('Question: yes')
    start = tokenizer.encode('Question:')
    assert whole[: len(start)] == start
    assert whole[len(start) :] == tokenizer.encode(' yes', continues=True)
    assert whole[len(start) :] == tokenizer.encode('yes')
    assert tokenizer.decode(whole[len(start) :], continues=True) == ' yes'
    assert tokenizer.decode(whole[len(start) :]) == 'yes'


def test_line_breaks_that_grow_together(tmp_path):
    metadata = read_recording('llama2')['gguf']
    changes = {
        'tokens': [*metadata['tokens'], '\n', '\n\n'],
        'token_type': [*metadata['token_type'], 1, 1],
        'scores': [*metadata['scores'], -900.0, -901.0],
    }
    tokenizer = from_metadata(tmp_path / 'a.gguf', 'llama2', **changes)
    assert tokenizer.encode('\nyes', continues=True) == tokenizer.encode('\nyes')
    assert tokenizer.encode(' yes', continues=True) == tokenizer.encode('yes')


@pytest.mark.parametrize('name', SENTENCE_PIECE)
def test_bytes_that_are_no_text(tmp_path, name):
    """An answer may be cut off within a character."""
    tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    ids = tokenizer.encode('龍', continues=True)
    assert len(ids) == 3
    assert tokenizer.decode(ids, continues=True) == '龍'
    assert tokenizer.decode(ids[:2], continues=True) == '\ufffd' * 2


@pytest.mark.parametrize('name', NAMES)
def test_special_ids(tmp_path, name):
    metadata = read_recording(name)['gguf']
    starts = read_recording(name)['llama_cpp_adds_bos']
    for tokenizer in (from_directory(tmp_path, name), from_metadata(tmp_path / 'a.gguf', name)):
        assert tokenizer.eos_id == metadata['eos_token_id']
        assert tokenizer.bos_id == (metadata['bos_token_id'] if starts else None)
        assert tokenizer.vocab_size == len(metadata['tokens'])
        tokens = metadata['tokens']
        assert tokenizer.named_tokens['eos_token'] == tokens[metadata['eos_token_id']]
        assert tokenizer.named_tokens.get('bos_token') == (
            tokens[metadata['bos_token_id']] if 'bos_token_id' in metadata else None
        )


def test_the_file_says_whether_texts_start_with_bos(tmp_path):
    path = tmp_path / 'a.gguf'
    assert from_metadata(path, 'llama2', add_bos_token=False).bos_id is None
    assert from_metadata(path, 'llama3', add_bos_token=False).bos_id is None
    assert from_metadata(path, 'qwen2', add_bos_token=True, bos_token_id=481).bos_id == 481
    assert from_directory(tmp_path, 'llama2', add_bos_token=False).bos_id is None
    assert from_directory(tmp_path, 'llama2', add_bos_token=None).bos_id == 1
    settings = {'add_bos_token': True, 'bos_token': {'content': '<|endoftext|>'}}
    assert from_directory(tmp_path, 'qwen2', **settings).bos_id == 481


def test_no_space_before_a_text_if_the_file_says_so(tmp_path):
    tokenizer = from_metadata(tmp_path / 'a.gguf', 'llama2', add_space_prefix=False)
    assert tokenizer.decode(tokenizer.encode('yes')) == 'yes'
    assert tokenizer.encode('yes') == tokenizer.encode('yes', continues=True)
    assert tokenizer.encode(' yes') != tokenizer.encode('yes')


def test_where_the_end_of_a_text_is_looked_for(tmp_path):
    write_directory(tmp_path, 'llama3', eos_token=None)
    with pytest.raises(UserError) as caught:
        from_huggingface(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path} does not say which token ends a text: set eos_token in tokenizer_config.json.'
    )
    (tmp_path / 'config.json').write_text('{"eos_token_id": 7}')
    assert from_huggingface(tmp_path).eos_id == 7
    (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [9, 8]}')
    assert from_huggingface(tmp_path).eos_id == 9
    (tmp_path / 'special_tokens_map.json').write_text('{"eos_token": "<|end_header_id|>"}')
    write_directory(tmp_path, 'llama3')
    assert from_huggingface(tmp_path).eos_id == 482


@pytest.mark.parametrize('value', [999_999, -1, True, 'x', [999_999, 2]])
def test_an_end_that_is_no_token(tmp_path, value):
    write_directory(tmp_path, 'llama3', eos_token=None)
    (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': value}))
    with pytest.raises(UserError) as caught:
        from_huggingface(tmp_path)
    found = value[0] if isinstance(value, list) else value
    assert str(caught.value) == (
        f'{tmp_path}/config.json has eos_token_id = {found!r}, which is not a token id of '
        'tokenizer.json.'
    )


@pytest.mark.parametrize('template', [[{'name': 'default'}], ['x'], {'default': 'x'}, 3])
def test_a_chat_template_that_is_no_text(tmp_path, template):
    write_directory(tmp_path, 'llama3', chat_template=template)
    message = f'The chat template in {tmp_path} (is broken|must be text)'
    with pytest.raises(UserError, match=message):
        from_huggingface(tmp_path)


def test_special_tokens_map(tmp_path):
    write_directory(tmp_path, 'llama3')
    config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    del config['eos_token']
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    (tmp_path / 'special_tokens_map.json').write_text('{"eos_token": {"content": "<|eot_id|>"}}')
    assert from_huggingface(tmp_path).eos_id == 482


def test_texts_are_neither_cut_off_nor_padded(tmp_path):
    write_directory(tmp_path, 'llama3')
    content = json.loads((tmp_path / 'tokenizer.json').read_text('utf-8'))
    content['truncation'] = {
        'direction': 'Right',
        'max_length': 3,
        'strategy': 'LongestFirst',
        'stride': 0,
    }
    content['padding'] = {
        'strategy': {'Fixed': 64},
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '!',
    }
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content), 'utf-8')
    item = read_recording('llama3')['texts'][4]
    assert from_huggingface(tmp_path).encode(item['text']) == item['ids']


def test_chat_templates_of_a_directory(tmp_path):
    assert from_directory(tmp_path, 'llama3').chat_template is None
    assert from_directory(tmp_path, 'llama3', chat_template='one').chat_template == 'one'
    several = [{'name': 'tool_use', 'template': 'two'}, {'name': 'default', 'template': 'three'}]
    assert from_directory(tmp_path, 'llama3', chat_template=several).chat_template == 'three'
    assert from_directory(tmp_path, 'llama3', chat_template=several[:1]).chat_template is None
    (tmp_path / 'chat_template.jinja').write_text('four\n')
    assert from_directory(tmp_path, 'llama3', chat_template='one').chat_template == 'four\n'


def test_chat_template_of_a_gguf(tmp_path):
    path = tmp_path / 'a.gguf'
    assert from_metadata(path, 'llama3').chat_template is None
    assert from_metadata(path, 'llama3', chat_template='one').chat_template == 'one'


def message(call, *args, **changes) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **changes)
    return str(caught.value)


def test_a_directory_without_a_tokenizer(tmp_path):
    assert message(from_huggingface, tmp_path) == f'There is no tokenizer.json in {tmp_path}.'
    (tmp_path / 'tokenizer.model').write_bytes(b'')
    assert message(from_huggingface, tmp_path) == (
        f'{tmp_path} has tokenizer.model but no tokenizer.json: make one with transformers, '
        'AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY).'
    )


def test_broken_files(tmp_path):
    write_directory(tmp_path, 'llama3')
    (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": ')
    text = message(from_huggingface, tmp_path)
    assert text.startswith(f'{tmp_path / "tokenizer_config.json"} is not valid JSON (')
    (tmp_path / 'tokenizer_config.json').write_text('[]')
    assert message(from_huggingface, tmp_path) == (
        f'{tmp_path / "tokenizer_config.json"}: the content is []; it must be an object with '
        'fields: download it again.'
    )
    (tmp_path / 'tokenizer.json').write_text('{"version": "1.0", ')
    text = message(from_huggingface, tmp_path)
    assert text.startswith(f'{tmp_path / "tokenizer.json"} is not a tokenizer (')
    assert text.endswith('; download it again.')


@pytest.mark.parametrize('name', ['eos_token', 'bos_token'])
def test_special_tokens_that_are_not_there(tmp_path, name):
    settings = {name: '</s>', 'add_bos_token': True}
    assert message(from_directory, tmp_path, 'llama3', **settings) == (
        f"{tmp_path} names '</s>' as {name}, which tokenizer.json does not have."
    )


@pytest.mark.parametrize('model, split', [('gpt2', 'tekken'), ('t5', 'default')])
def test_other_kinds_of_gguf(tmp_path, model, split):
    path = tmp_path / 'a.gguf'
    assert message(from_metadata, path, 'llama3', model=model, pre=split) == (
        f'{path} has a tokenizer of kind {model!r} with pre-tokenizer {split!r}; only '
        "'llama', and 'gpt2' with one of 'smollm', 'llama-bpe', 'qwen2', can be read from GGUF."
    )


@pytest.mark.parametrize(
    'name, key',
    [
        ('llama3', 'merges'),
        ('llama3', 'eos_token_id'),
        ('llama3', 'bos_token_id'),
        ('llama3', 'tokens'),
        ('llama2', 'scores'),
        ('llama2', 'token_type'),
    ],
)
def test_missing_metadata(tmp_path, name, key):
    path = tmp_path / 'a.gguf'
    assert message(from_metadata, path, name, **{key: None}) == (
        f'{path} has no tokenizer.ggml.{key}, without which it cannot be used.'
    )


def test_merges_of_other_tokens(tmp_path):
    path = tmp_path / 'a.gguf'
    assert message(from_metadata, path, 'llama3', merges=['qq zz']) == (
        f'{path} has tokenizer merges of tokens that are not in its vocabulary.'
    )


@pytest.mark.parametrize('name, key', [('llama3', 'token_type'), ('llama2', 'scores')])
def test_lists_of_another_length(tmp_path, name, key):
    path = tmp_path / 'a.gguf'
    items = read_recording(name)['gguf'][key]
    assert message(from_metadata, path, name, **{key: items[:-1]}) == (
        f'{path} has {len(items)} tokens but {len(items) - 1} items in tokenizer.ggml.{key}.'
    )


@pytest.mark.parametrize('key', ['eos_token_id', 'bos_token_id', 'unknown_token_id'])
def test_ids_beyond_the_vocabulary(tmp_path, key):
    path = tmp_path / 'a.gguf'
    assert message(from_metadata, path, 'llama2', **{key: 700}) == (
        f'{path} has tokenizer.ggml.{key} = 700, but its vocabulary has only 700 tokens.'
    )


def test_an_end_token_that_is_half_a_character(tmp_path):
    write_directory(tmp_path, 'llama3')
    (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "\\ud800"}')
    assert message(from_huggingface, tmp_path) == (
        f'{tmp_path / "tokenizer_config.json"} contains an unpaired surrogate, which is not valid '
        'Unicode text: download it again.'
    )

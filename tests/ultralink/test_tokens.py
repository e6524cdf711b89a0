"""Token counters of model presets, GGUF files and tokenizer directories."""

import pytest

from malora_jax.errors import UserError
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.ultralink.text.tokens import load_token_counter


def test_a_directory_needs_no_end_token(tmp_path, weights):
    expected = tokenizer_lib.from_gguf(GGUFFile(weights))
    (tmp_path / 'tokenizer.json').write_text(expected.tokenizer_json, 'utf-8')
    with pytest.raises(UserError, match='does not say which token ends a text'):
        tokenizer_lib.from_huggingface(tmp_path)
    of_directory, of_file = map(load_token_counter, (str(tmp_path), str(weights)))
    for text in ('', 'One two.', 'Où ça ?\n', '第三行'):
        assert of_directory(text) == of_file(text) == len(expected.encode(text))
    assert of_directory.fingerprint == of_file.fingerprint


def test_a_model_without_files_names_the_flag(monkeypatch):
    def fail(*_):
        raise UserError('Connect, or set model.weights to a directory.')

    monkeypatch.setattr('malora_jax.models.loading.model_hub.download', fail)
    with pytest.raises(UserError, match='or set --tokenizer to a directory') as error:
        load_token_counter('llama2-13b')
    assert str(error.value).endswith('use --tokenizer=smollm2-135m, which `make setup` installs.')


def test_only_the_tokenizer_is_downloaded(monkeypatch, tmp_path, weights):
    asked = []

    def download(repository, patterns):
        asked.append((repository, patterns))
        text = tokenizer_lib.from_gguf(GGUFFile(weights)).tokenizer_json
        (tmp_path / 'tokenizer.json').write_text(text, 'utf-8')
        return tmp_path

    monkeypatch.setattr('malora_jax.models.loading.model_hub.download', download)
    assert load_token_counter('llama2-13b').name == 'llama2-13b'
    assert asked == [('meta-llama/Llama-2-13b-hf', ('tokenizer.json',))]


class StubEncoding:
    """Stands in for cl100k, whose vocabulary must be downloaded; a token is a character."""

    def encode_ordinary(self, text):
        return list(text)


def test_the_tokenizer_of_the_paper(monkeypatch):
    tiktoken = pytest.importorskip('tiktoken')
    asked = []
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: asked.append(name) or StubEncoding())
    count = load_token_counter('cl100k')
    assert asked == ['cl100k_base']
    assert (count('<|endoftext|>'), count.name, count.fingerprint) == (13, 'cl100k', 'cl100k_base')


def test_a_vocabulary_that_cannot_be_downloaded(monkeypatch):
    tiktoken = pytest.importorskip('tiktoken')

    def fail(_):
        raise ConnectionError

    monkeypatch.setattr(tiktoken, 'get_encoding', fail)
    with pytest.raises(UserError, match=r'cannot be loaded \(ConnectionError\): connect, or set'):
        load_token_counter('cl100k')

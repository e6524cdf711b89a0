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

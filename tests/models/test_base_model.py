"""Sources of weights, `model.name='auto'`, and messages for each refusal of the hub."""

import json
import pathlib
import types

import huggingface_hub
import pytest
import tokenizers
from huggingface_hub import errors as hub_errors
from safetensors.numpy import save_file

from malora_jax.errors import UserError
from malora_jax.models import preset
from malora_jax.models.loading import model_hub
from malora_jax.models.loading.base_model import find_weights, load_base, model_config
from malora_jax.models.loading.params import to_huggingface
from tests.helpers.models import TINY_SIZES, random_variables, tiny_model
from tests.helpers.tiny_gguf import write_tiny_gguf

CONFIG = TINY_SIZES | {'architectures': ['LlamaForCausalLM'], 'tie_word_embeddings': True}
RIGHT = "a GGUF file, a Hugging Face directory, or a model's name on the hub such as Qwen/Qwen3-8B"


def write_directory(path: pathlib.Path, tokens: int = 300, **changes) -> pathlib.Path:
    """Write a directory with the tiny model, as `save_pretrained` does."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'config.json').write_text(json.dumps(CONFIG | changes))
    weights = to_huggingface(preset('tiny'), random_variables(tiny_model())['params'])
    save_file(weights, path / 'model.safetensors')
    vocabulary = {f't{i}': i for i in range(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='t0'))
    tokenizer.save(str(path / 'tokenizer.json'))
    (path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': 't2'}))
    return path


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


# Directories.


def test_a_directory(tmp_path):
    path = write_directory(tmp_path / 'some-model')
    config = model_config('auto', str(path), 'float32')
    assert config.name == 'some-model'
    base = load_base(config, str(path))
    assert base.config == config and base.tokenizer.eos_id == 2
    named = load_base(preset('tiny'), str(path))
    assert named.config == preset('tiny')


def test_a_relative_path(tmp_path, monkeypatch):
    write_directory(tmp_path / 'models' / 'mine')
    monkeypatch.chdir(tmp_path)
    assert model_config('auto', 'models/mine', 'float32').name == 'mine'
    monkeypatch.chdir(tmp_path / 'models' / 'mine')
    assert model_config('auto', '.', 'float32').name == 'mine'


@pytest.mark.parametrize(
    'key, value, needed',
    [
        ('vocab_size', 320, 300),
        ('num_hidden_layers', 3, 2),
        ('head_dim', 32, 16),
        ('rope_theta', 10000.0, 5000.0),
        ('rms_norm_eps', 1e-5, 1e-4),
        ('max_position_embeddings', 1024, 'at least 2048'),
    ],
)
def test_another_shape_than_the_presets(tmp_path, key, value, needed):
    path = write_directory(tmp_path, **{key: value})
    assert message(load_base, preset('tiny'), str(path)) == (
        f"{path} has {key} = {value}; model 'tiny' needs {needed}."
    )


def test_another_family_than_the_presets(tmp_path):
    path = write_directory(tmp_path, architectures=['Qwen2ForCausalLM'])
    assert message(load_base, preset('tiny'), str(path)) == (
        f"{path} has biases of q, k and v = True; model 'tiny' needs False."
    )


def test_a_longer_context_than_the_presets_will_do(tmp_path):
    path = write_directory(tmp_path, max_position_embeddings=4096)
    assert load_base(preset('tiny'), str(path)).config.context == 2048


def test_more_tokens_than_the_model_has_room_for(tmp_path):
    path = write_directory(tmp_path, tokens=301)
    assert message(load_base, preset('tiny'), str(path)) == (
        f"{path} has a tokenizer of 301 tokens; the embedding of model 'tiny' has only 300 rows."
    )


def test_a_directory_without_config(tmp_path):
    expected = (
        f'There is no {tmp_path / "config.json"}: a directory of weights needs the config.json of '
        'the model.'
    )
    assert message(load_base, preset('tiny'), str(tmp_path)) == expected
    assert message(model_config, 'auto', str(tmp_path), 'float32') == expected


# Possible values of `model.weights`.


def test_auto_needs_weights():
    assert message(model_config, 'auto', '', 'float32') == (
        f"model.weights is ''; it must be {RIGHT}, as model.name is 'auto'."
    )


def test_auto_of_a_gguf_file(tmp_path):
    path = tmp_path / 'some-model.gguf'
    write_tiny_gguf(path)
    config = model_config('auto', str(path), 'float32')
    assert load_base(config, str(path)).config == config
    assert config.name == 'some-model'


@pytest.mark.parametrize('weights', ['no/such/directory', './no/such', '/no/such', 'nothing'])
def test_no_such_directory(weights):
    assert message(find_weights, preset('tiny'), weights) == (
        f'There is no directory {pathlib.Path(weights)}; model.weights must be {RIGHT}.'
    )


def test_a_file_that_is_no_gguf(tmp_path):
    path = write_directory(tmp_path) / 'model.safetensors'
    assert message(find_weights, preset('tiny'), str(path)) == (
        f'model.weights is {str(path)!r}; it must be {RIGHT}.'
    )


# The hub, replaced by a fake.


@pytest.fixture
def downloads(monkeypatch, tmp_path) -> list[tuple[str, list[str]]]:
    """Requests to a fake hub, which has the tiny model under every name."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name, *, repo_type, revision, allow_patterns, ignore_patterns):
        assert ignore_patterns == ['*/*']
        asked.append((name, allow_patterns))
        return str(write_directory(tmp_path / 'snapshots' / '0123abc'))

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    return asked


def test_a_preset_without_weights_of_its_own_is_downloaded(downloads):
    text = message(load_base, preset('qwen3-8b'))
    assert text.endswith("has vocab_size = 300; model 'qwen3-8b' needs 151936.")
    assert downloads == [('Qwen/Qwen3-8B', list(model_hub.MODEL_FILES))]


def test_auto_downloads_no_weights_until_they_are_needed(downloads):
    config = model_config('auto', 'owner/some-model', 'float32')
    assert downloads == [('owner/some-model', ['config.json'])]
    assert config.name == 'owner/some-model'
    load_base(config, 'owner/some-model')
    assert downloads[1:] == [('owner/some-model', list(model_hub.MODEL_FILES))]


def test_what_is_installed_is_not_downloaded(downloads):
    assert find_weights(preset('smollm2-135m'), '').suffix == '.gguf'
    assert not downloads


def test_a_directory_comes_before_the_hub(downloads, tmp_path, monkeypatch):
    write_directory(tmp_path / 'owner' / 'model')
    monkeypatch.chdir(tmp_path)
    assert find_weights(preset('tiny'), 'owner/model') == pathlib.Path('owner/model')
    assert not downloads


@pytest.mark.parametrize(
    'name, chosen',
    [
        ('model.safetensors', True),
        ('model-00001-of-00002.safetensors', True),
        ('model.safetensors.index.json', True),
        ('config.json', True),
        ('tokenizer.json', True),
        ('chat_template.jinja', True),
        ('tokenizer.model', True),
        ('pytorch_model.bin', False),
        ('consolidated.safetensors', False),
        ('modeling_own.py', False),
        ('original/model.safetensors', False),
        ('onnx/config.json', False),
    ],
)
def test_which_files_are_downloaded(name, chosen):
    kept = huggingface_hub.utils.filter_repo_objects(
        [name], allow_patterns=list(model_hub.MODEL_FILES), ignore_patterns=['*/*']
    )
    assert list(kept) == [name] * chosen


# Response attributes that the hub's errors read.
ANSWER = types.SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    'error, expected',
    [
        (
            hub_errors.GatedRepoError('Access to model\nis restricted', response=ANSWER),
            'owner/model is gated: accept its license at https://huggingface.co/owner/model and '
            'set HF_TOKEN to a token of your account.',
        ),
        (
            hub_errors.RepositoryNotFoundError('404\nnot found', response=ANSWER),
            'There is neither a directory owner/model nor a public model of that name on the '
            'Hugging Face Hub; for a private one set HF_TOKEN.',
        ),
        (
            hub_errors.LocalEntryNotFoundError('Cannot find\nan appropriate snapshot'),
            'owner/model is not a directory and not in the local cache, and the Hugging Face Hub '
            'cannot be reached: connect, or set model.weights to a directory or GGUF file.',
        ),
        (
            hub_errors.HfHubHTTPError('503 Service\nUnavailable', response=ANSWER),
            'owner/model could not be downloaded from the Hugging Face Hub: 503 Service '
            'Unavailable',
        ),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, expected):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    assert message(find_weights, preset('tiny'), 'owner/model') == expected
    assert message(model_config, 'auto', 'owner/model', 'float32') == expected


@pytest.mark.parametrize('name', ['owner/model..x', 'owner/model--x', 'owner/model.git'])
def test_what_no_model_can_be_called(name):
    assert message(find_weights, preset('tiny'), name) == (
        f'{name} is neither a directory nor a valid name of a model on the Hugging Face Hub.'
    )


def test_a_size_that_no_memory_holds(tmp_path):
    path = write_directory(tmp_path / 'large', vocab_size=10**9)
    config = model_config('auto', str(path), 'float32')
    assert 'has shape (300, 64); the model needs (1000000000, 64)' in message(
        load_base, config, str(path)
    )


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    assert message(find_weights, preset('llama2-7b'), '') == (
        'meta-llama/Llama-2-7b-hf is not a directory and not in the local cache, and the Hugging '
        'Face Hub cannot be reached: connect, or set model.weights to a directory or GGUF file.'
    )

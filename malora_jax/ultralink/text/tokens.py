"""Token counts of texts, with the tokenizer of the model to be trained."""

import dataclasses
import pathlib

from malora_jax.errors import unknown_name
from malora_jax.export.fingerprints import text_fingerprint
from malora_jax.models.config import PRESETS, preset
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.base_model import find_weights
from malora_jax.models.loading.gguf_file import GGUFFile


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Function that counts the tokens of a text.

    Attributes:
        tokenizer: Tokenizer that splits the text.
        fingerprint: Hash of the tokenizer's definition.
    """

    tokenizer: tokenizer_lib.Tokenizer
    fingerprint: str

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens at its ends."""
        return len(self.tokenizer.encode(text))


def load_token_counter(name_or_path: str) -> TokenCounter:
    """Load the tokenizer of a model, and return a token counter that uses it.

    Example:
        load_token_counter('llama2-13b')('How many tokens?')

    Args:
        name_or_path: Name of a preset, such as llama2-13b; or path of a GGUF file, or of a
            directory with tokenizer.json.

    Raises:
        UserError: The name or path is unknown, or its files are missing or broken.
    """
    path = pathlib.Path(name_or_path).expanduser()
    if not (path.is_dir() or path.suffix == '.gguf'):
        if name_or_path not in PRESETS:
            raise unknown_name('model or path in --tokenizer', name_or_path, PRESETS)
        path = find_weights(preset(name_or_path), '')
    if path.suffix == '.gguf':
        tokenizer = tokenizer_lib.from_gguf(GGUFFile(path))
    else:
        tokenizer = tokenizer_lib.from_huggingface(path)
    return TokenCounter(tokenizer, text_fingerprint(tokenizer.tokenizer_json))

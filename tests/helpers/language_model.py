"""A language model with random weights that reads and writes bytes."""

from malora_jax.data import get_template
from malora_jax.inference import LanguageModel
from tests.helpers.data import ByteTokenizer
from tests.helpers.models import random_variables, small_method, tiny_model

MODEL = tiny_model(small_method('malora'))
VARIABLES = random_variables(MODEL, seed=1)


class Tokenizer(ByteTokenizer):
    """Leaves special tokens and what is no byte out of texts."""

    def decode(self, ids, *, continues=False):
        return bytes(i for i in ids if i < 128).decode()


def language_model(template: str = 'chatml', tokenizer=None) -> LanguageModel:
    tokenizer = tokenizer or Tokenizer()
    return LanguageModel('tiny', MODEL, VARIABLES, tokenizer, get_template(template), 2)

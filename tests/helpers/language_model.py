"""A byte-level language model with random weights."""

from malora_jax.data import get_template
from malora_jax.inference import LanguageModel
from tests.helpers.data import ByteTokenizer
from tests.helpers.models import random_variables, small_method, tiny_model

MODEL = tiny_model(small_method('malora'))
VARIABLES = random_variables(MODEL, seed=1)


class AsciiTokenizer(ByteTokenizer):
    """Byte tokenizer whose `decode` drops special tokens and tokens above ASCII."""

    def decode(self, ids, *, continues=False):
        return bytes(i for i in ids if i < 128).decode()


def language_model(template: str = 'chatml', tokenizer=None) -> LanguageModel:
    tokenizer = tokenizer or AsciiTokenizer()
    return LanguageModel('tiny', MODEL, VARIABLES, tokenizer, get_template(template), 2)

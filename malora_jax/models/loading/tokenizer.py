"""The tokenizer that comes in a GGUF file: byte-level BPE built from its metadata."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from malora_jax import errors
from malora_jax.models.loading.gguf_file import GGUFFile

_CONTROL = 3  # gguf.TokenType.CONTROL: matched before anything else, never split.


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        eos_id: the token that ends an answer.
        vocab_size: number of tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_id: int):
        self._backend = backend
        self.eos_id = eos_id
        self.vocab_size = backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of the text; special tokens in it are recognised, none is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, without special tokens."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token by its text, or None."""
        return self._backend.token_to_id(token)


def from_gguf(file: GGUFFile) -> Tokenizer:
    """Builds the tokenizer from `tokenizer.ggml.*`.

    Raises:
        UserError: a kind of tokenizer other than byte-level BPE that splits digits, or merges
            that do not belong to the vocabulary.
    """
    kind, split = file.field('tokenizer.ggml.model'), file.field('tokenizer.ggml.pre')
    if (kind, split) != ('gpt2', 'smollm'):
        raise errors.UserError(
            f'{file.path} has a tokenizer of kind {kind!r} with pre-tokenizer {split!r}; '
            "only 'gpt2' with 'smollm' can be read from GGUF."
        )
    tokens = file.field('tokenizer.ggml.tokens')
    merges = [tuple(merge.split(' ')) for merge in file.field('tokenizer.ggml.merges')]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if not all({*merge, ''.join(merge)} <= vocabulary.keys() for merge in merges):
        raise errors.UserError(
            f'{file.path} has tokenizer merges of tokens that are not in its vocabulary.'
        )
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = file.field('tokenizer.ggml.token_type')
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in control]
    )
    return Tokenizer(backend, file.field('tokenizer.ggml.eos_token_id'))

"""The tokenizer that comes with a base model, from a Hugging Face directory or a GGUF file."""

import pathlib

import tokenizers

from malora_jax.models.loading import tokenizer_gguf, tokenizer_huggingface
from malora_jax.models.loading.gguf_file import GGUFFile

# After this, a text is encoded like one that goes on: in SentencePiece a line break is a byte, and
# does not grow together with what follows.
_LINE_BREAK = '\n'


class Tokenizer:
    """Text to token ids and back.

    SentencePiece puts a space before a text and takes it away again when decoding. Both are wrong
    in the middle of a conversation; `continues` says that a text follows another.

    Attributes:
        eos_id: the token that ends a text.
        bos_id: the token that every text starts with, or None. `encode` does not add it.
        vocab_size: the highest id, plus 1.
        longest_token: The most characters that one token stands for.
        chat_template: the model's own template in the language of Jinja, or None.
        named_tokens: special tokens by the names that templates give them, such as `bos_token`.
        special_tokens: the texts of all tokens that `decode` leaves out.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        bos_id: int | None = None,
        chat_template: str | None = None,
        named_tokens: dict[str, str] | None = None,
    ):
        self._backend = backend
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.chat_template = chat_template
        self.named_tokens = named_tokens or {}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())
        self.longest_token = max(map(len, vocabulary))
        added = backend.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(token.content for token in added if token.special)
        self._line_break = self.encode(_LINE_BREAK)
        # Whether a word is another token at the beginning of a text.
        self._adds_space = self.encode('a') != self.encode(_LINE_BREAK + 'a')[-1:]

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of the text; special tokens in it are recognised, none is added."""
        if not continues or not self._adds_space:
            # Unlike `encode`, this lets other threads run, and it takes half the time.
            return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        both = self.encode(_LINE_BREAK + text)
        count = len(self._line_break)
        # In a vocabulary with a token for several line breaks, it may grow after all.
        return both[count:] if both[:count] == self._line_break else self.encode(text)

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """The text of the ids, without special tokens."""
        if not continues or not self._adds_space:
            return self._backend.decode(ids, skip_special_tokens=True)
        # Not after a line break: runs of bytes are decoded together.
        before = self.encode('a')
        return self.decode(before + ids).removeprefix(self.decode(before))

    @property
    def definition(self) -> str:
        """What `tokenizer.json` holds for this tokenizer."""
        return self._backend.to_str()

    def token_to_id(self, token: str) -> int | None:
        """The id of one token by its text, or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str:
        """Return the text of one token by its id, as it stands in the vocabulary.

        Raises:
            KeyError: There is no token with this id.
        """
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise KeyError(token_id)
        return token


def from_huggingface(directory: str | pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json` and what the files beside it say about special tokens.

    Raises:
        UserError: a file is missing or broken, or names a token that the tokenizer lacks.
    """
    directory = pathlib.Path(directory)
    backend = tokenizer_huggingface.backend(directory)
    settings = tokenizer_huggingface.settings(directory)
    named = tokenizer_huggingface.named_tokens(settings)
    return Tokenizer(
        backend,
        eos_id=tokenizer_huggingface.eos_id(directory, backend, named),
        bos_id=tokenizer_huggingface.bos_id(directory, backend, named, settings),
        chat_template=tokenizer_huggingface.chat_template(directory, settings),
        named_tokens=named,
    )


def from_gguf(file: GGUFFile) -> Tokenizer:
    """Builds the tokenizer from `tokenizer.ggml.*`.

    Raises:
        UserError: a kind of tokenizer that is not known, or metadata that are missing or do not
            fit together.
    """
    return Tokenizer(
        tokenizer_gguf.backend(file),
        eos_id=tokenizer_gguf.eos_id(file),
        bos_id=tokenizer_gguf.bos_id(file),
        chat_template=file.field('tokenizer.chat_template', str),
        named_tokens=tokenizer_gguf.named_tokens(file),
    )

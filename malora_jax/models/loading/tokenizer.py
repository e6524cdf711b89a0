"""Tokenizer of a base model, from a Hugging Face directory or a GGUF file."""

import pathlib

import tokenizers

from malora_jax.models.loading import tokenizer_gguf, tokenizer_huggingface
from malora_jax.models.loading.gguf_file import GGUFFile

# Prefix with which `encode` avoids SentencePiece's leading space in a text that follows another.
# SentencePiece encodes a line break as a byte token, which does not merge with the text after it.
_LINE_BREAK = '\n'


class Tokenizer:
    """Conversion between text and token ids, with the special tokens of a model.

    SentencePiece adds a space before a text, and removes it when decoding. Both are wrong for a
    text that follows another, as in a conversation; the argument `continues` turns them off.

    Attributes:
        eos_id: Id of the end token.
        bos_id: Id of the token that every text starts with, or None. `encode` does not add it.
        vocab_size: Highest token id plus 1.
        max_token_chars: Length in characters of the longest entry of the vocabulary.
        chat_template: The model's chat template in Jinja, or None.
        named_tokens: Text of each special token that chat templates can use, such as '<s>'. The
            key is the token's name in templates, such as 'bos_token'.
        special_tokens: Texts of the special tokens, which `decode` leaves out.

    Example:
        Round trip of a text:

            tokenizer = from_huggingface('models/smollm2')
            ids = tokenizer.encode('Hello')
            tokenizer.decode(ids)  # 'Hello'
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
        self.max_token_chars = max(map(len, vocabulary))
        added = backend.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(token.content for token in added if token.special)
        self._line_break = self.encode(_LINE_BREAK)
        # True if a space is added before a text, so that its first word is encoded differently.
        self._adds_space = self.encode('a') != self.encode(_LINE_BREAK + 'a')[-1:]

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the token ids of a text.

        Special tokens in the text are recognized; none are added.

        Args:
            text: Text to encode.
            continues: Whether the text follows another text, so that no space is added before it.
        """
        if not continues or not self._adds_space:
            # Unlike the library's `encode`, this releases the GIL, and it takes half the time.
            return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        both = self.encode(_LINE_BREAK + text)
        count = len(self._line_break)
        # If the vocabulary has tokens of several line breaks, the prefix may merge with the text.
        return both[count:] if both[:count] == self._line_break else self.encode(text)

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """Return the text of token ids, without special tokens.

        Args:
            ids: Token ids.
            continues: Whether the text follows another text, so that a leading space is kept.
        """
        if not continues or not self._adds_space:
            return self._backend.decode(ids, skip_special_tokens=True)
        # The prefix is not a line break, since adjacent byte tokens are decoded together.
        before = self.encode('a')
        return self.decode(before + ids).removeprefix(self.decode(before))

    @property
    def tokenizer_json(self) -> str:
        """Content of a `tokenizer.json` for this tokenizer."""
        return self._backend.to_str()

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token given by its text, or None if there is no such token."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str:
        """Return the vocabulary entry of a token id.

        Raises:
            KeyError: There is no token with this id.
        """
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise KeyError(token_id)
        return token


def from_huggingface(directory: str | pathlib.Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face directory.

    `tokenizer.json` contains the tokenizer itself. The chat template and the names of special
    tokens are in other files.

    Raises:
        UserError: A file is missing or broken, or names a token that the tokenizer lacks.
    """
    directory = pathlib.Path(directory)
    backend = tokenizer_huggingface.load_backend(directory)
    settings = tokenizer_huggingface.read_settings(directory)
    named = tokenizer_huggingface.named_tokens(settings)
    return Tokenizer(
        backend,
        eos_id=tokenizer_huggingface.eos_id(directory, backend, named),
        bos_id=tokenizer_huggingface.bos_id(directory, backend, named, settings),
        chat_template=tokenizer_huggingface.chat_template(directory, settings),
        named_tokens=named,
    )


def from_gguf(file: GGUFFile) -> Tokenizer:
    """Build the tokenizer from the metadata `tokenizer.ggml.*` of a GGUF file.

    Raises:
        UserError: The kind of tokenizer is not implemented, or metadata is missing or inconsistent.
    """
    return Tokenizer(
        tokenizer_gguf.build_backend(file),
        eos_id=tokenizer_gguf.eos_id(file),
        bos_id=tokenizer_gguf.bos_id(file),
        chat_template=file.field('tokenizer.chat_template', str),
        named_tokens=tokenizer_gguf.named_tokens(file),
    )

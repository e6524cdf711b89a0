"""Interface of the tokenizers that the data pipeline uses."""

from typing import Protocol


class TokenizerProtocol(Protocol):
    """Interface of a tokenizer: text to token IDs and back.

    For example::

        tokenizer.decode(tokenizer.encode('Why?'))  # 'Why?'

    Attributes:
        eos_id: ID of the token that ends a text.
        bos_id: ID of the token that every text starts with, or None.
        chat_template: Jinja source of the model's own chat template, or None.
        named_tokens: Special tokens by the names that templates use, such as `bos_token`.
        special_tokens: Text of all special tokens.
        max_token_chars: Maximum number of characters of a token.
    """

    eos_id: int
    bos_id: int | None
    chat_template: str | None
    named_tokens: dict[str, str]
    special_tokens: frozenset[str]
    max_token_chars: int

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the token IDs of a text; special tokens in it are recognized, but none are added.

        Args:
            text: Any text.
            continues: Whether the text continues another text, so that nothing marks its start
                (such as SentencePiece's leading space).
        """
        ...

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """Return the text of token IDs, without the special tokens.

        Apart from special tokens, this is the inverse of `encode`.

        Args:
            ids: Token IDs.
            continues: Whether the text continues another text, so that a space at its start is
                kept.
        """
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the ID of the token with this text, or None if there is none."""
        ...

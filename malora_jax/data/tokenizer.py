"""What the data need of a tokenizer."""

from typing import Protocol


class Tokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
        eos_id: the token that ends a text.
        bos_id: the token that every text starts with, or None.
        chat_template: the model's own template in the language of Jinja, or None.
        named_tokens: special tokens by the names that templates give them, such as `bos_token`.
        special_tokens: the texts of all special tokens.
        longest_token: The most characters that one token stands for.
    """

    eos_id: int
    bos_id: int | None
    chat_template: str | None
    named_tokens: dict[str, str]
    special_tokens: frozenset[str]
    longest_token: int

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The tokens of a text; special tokens written in it are recognised, none are added.

        Args:
            text: anything.
            continues: whether it follows another text, so that nothing marks its beginning.
        """
        ...

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        """The text of some tokens, the inverse of `encode`."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The token written so, or None."""
        ...

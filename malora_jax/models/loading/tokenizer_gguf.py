"""Tokenizers from the metadata of a GGUF file, with the same token ids as llama.cpp.

Two kinds are implemented: byte-level BPE ('gpt2') with a named pre-tokenizer, and SentencePiece BPE
('llama'), which has scores instead of merges.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from malora_jax import errors
from malora_jax.models.loading.gguf_file import GGUFFile

# Values of gguf.TokenType.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# Split pattern of each llama.cpp pre-tokenizer that is implemented. None splits off single digits,
# then splits as GPT-2 does.
_PRE_TOKENIZERS = {
    'smollm': None,
    'llama-bpe': (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    ),
    'qwen2': (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    ),
}


def build_backend(file: GGUFFile) -> tokenizers.Tokenizer:
    """Build a tokenizer of the `tokenizers` library from the file's metadata.

    Raises:
        UserError: The kind of tokenizer is not implemented, or metadata is missing or inconsistent.
    """
    kind, pre_tokenizer = _tokenizer_types(file)
    if kind == 'gpt2' and pre_tokenizer in _PRE_TOKENIZERS:
        tokenizer = _byte_level(file, pre_tokenizer)
    elif kind == 'llama':
        tokenizer = _sentence_piece(file)
    else:
        known = ', '.join(map(repr, _PRE_TOKENIZERS))
        raise errors.UserError(
            f'{file.path} has a tokenizer of kind {kind!r} with pre-tokenizer {pre_tokenizer!r}; '
            f"only 'llama', and 'gpt2' with one of {known}, can be read from GGUF."
        )
    tokens, kinds = _tokens(file), _per_token(file, 'token_type', list[int])
    _add(tokenizer, tokens, kinds, (_UNKNOWN, _CONTROL), special=True)
    _add(tokenizer, tokens, kinds, (_USER_DEFINED,), special=False)
    return tokenizer


def eos_id(file: GGUFFile) -> int:
    """Return the id of the end token.

    Raises:
        UserError: The file names no end token, or one that is not in its vocabulary.
    """
    return _token_id(file, 'eos_token_id')


def bos_id(file: GGUFFile) -> int | None:
    """Return the id of the token that every text starts with, or None.

    Raises:
        UserError: Texts start with a bos token, but the file does not say which token this is, or
            the token is not in the vocabulary.
    """
    kind, pre_tokenizer = _tokenizer_types(file)
    # Default of llama.cpp if the file does not say.
    default = kind == 'llama' or pre_tokenizer == 'llama-bpe'
    adds = file.field('tokenizer.ggml.add_bos_token', bool, default)
    return _token_id(file, 'bos_token_id') if adds else None


def named_tokens(file: GGUFFile) -> dict[str, str]:
    """Return the text of each special token that chat templates can use, such as '<s>'.

    The key is the token's name in templates, such as 'bos_token'.

    Raises:
        UserError: A special token is not in the vocabulary.
    """
    tokens = _tokens(file)
    keys = {
        'bos_token': 'bos_token_id',
        'eos_token': 'eos_token_id',
        'unk_token': 'unknown_token_id',
        'pad_token': 'padding_token_id',
    }
    return {
        name: tokens[_token_id(file, key)]
        for name, key in keys.items()
        if file.field(f'tokenizer.ggml.{key}') is not None
    }


def _tokenizer_types(file: GGUFFile) -> tuple[str | None, str | None]:
    """Return the names of the tokenizer model and of the pre-tokenizer; None if missing."""
    return file.field('tokenizer.ggml.model', str), file.field('tokenizer.ggml.pre', str)


def _tokens(file: GGUFFile) -> list[str]:
    return _field(file, 'tokens', list[str])


def _field(file: GGUFFile, key: str, kind: Any) -> Any:
    value = file.field(f'tokenizer.ggml.{key}', kind)
    if value is None:
        raise errors.UserError(
            f'{file.path} has no tokenizer.ggml.{key}, without which it cannot be used.'
        )
    return value


def _token_id(file: GGUFFile, key: str) -> int:
    index, count = _field(file, key, int), len(_tokens(file))
    if not 0 <= index < count:
        raise errors.UserError(
            f'{file.path} has tokenizer.ggml.{key} = {index}, but its vocabulary has '
            f'only {count:,} tokens.'
        )
    return index


def _per_token(file: GGUFFile, key: str, kind: Any) -> Any:
    """Return a metadata list that must have one item for each token of the vocabulary.

    Args:
        file: GGUF file.
        key: Key of the list, without the prefix 'tokenizer.ggml.'.
        kind: Type hint that the list must match, such as `list[int]`.

    Raises:
        UserError: The list is missing, or has another type or length.
    """
    items, tokens = _field(file, key, kind), _tokens(file)
    if len(items) != len(tokens):
        raise errors.UserError(
            f'{file.path} has {len(tokens):,} tokens but {len(items):,} items in '
            f'tokenizer.ggml.{key}.'
        )
    return items


def _add(
    tokenizer: tokenizers.Tokenizer,
    tokens: Sequence[str],
    kinds: Sequence[int],
    which: Sequence[int],
    special: bool,
) -> None:
    """Register all tokens of certain kinds as added tokens of the tokenizer.

    The tokenizer finds added tokens in a text before it splits the rest, so they stay whole.

    Args:
        tokenizer: Tokenizer, which is changed.
        tokens: All tokens of the vocabulary.
        kinds: Kind of each token, a value of `gguf.TokenType`.
        which: Kinds to register.
        special: Whether the tokens are special, so that decoding can leave them out.
    """
    chosen = [token for token, kind in zip(tokens, kinds, strict=True) if kind in which]
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token, special=special, normalized=False) for token in chosen]
    )


def _byte_level(file: GGUFFile, pre_tokenizer: str) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(_tokens(file))}
    merges = [tuple(merge.split(' ')) for merge in _field(file, 'merges', list[str])]
    if not all({*merge, ''.join(merge)} <= vocabulary.keys() for merge in merges):
        raise errors.UserError(
            f'{file.path} has tokenizer merges of tokens that are not in its vocabulary.'
        )
    # Llama 3 encodes a piece that is itself a token as that token, without applying merges.
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre_tokenizer == 'llama-bpe')
    tokenizer = tokenizers.Tokenizer(model)
    if pre_tokenizer == 'qwen2':
        tokenizer.normalizer = normalizers.NFC()
    pattern = _PRE_TOKENIZERS[pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True)
            if pattern is None
            else pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GGUFFile) -> tokenizers.Tokenizer:
    tokens, kinds = _tokens(file), _per_token(file, 'token_type', list[int])
    scores = _per_token(file, 'scores', list[float])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    normal_scores = {
        token: score
        for token, kind, score in zip(tokens, kinds, scores, strict=True)
        if kind == _NORMAL
    }
    unknown = next((t for t, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(normal_scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # As in llama.cpp, a space is added before a text, and also after each special token.
    adds_space = file.field('tokenizer.ggml.add_space_prefix', bool, True)
    prepend = [normalizers.Prepend('▁')] if adds_space else []
    strip = [decoders.Strip(' ', left=1)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(' ', '▁')])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return BPE merges that are equivalent to SentencePiece scores.

    SentencePiece merges the adjacent pair that forms the token with the highest score. BPE merges
    the pair that comes first in a list. The returned list is therefore sorted by the score of the
    token that a pair forms, highest first. It contains all pairs of tokens that form a token.
    """
    best_first = sorted(scores, key=lambda token: -scores[token])
    return [
        (token[:cut], token[cut:])
        for token in best_first
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]

"""Reading of the tokenizer files in a Hugging Face directory.

`tokenizer.json` contains the tokenizer itself. The start and end tokens and the chat template are
in other files of the directory.
"""

import pathlib
from typing import Any

import tokenizers

from malora_jax import errors, files

# Older tokenizer files, from which transformers can create a tokenizer.json.
_OLDER_FILES = ('tokenizer.model', 'vocab.json')

_NAMES = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token')


def load_backend(directory: pathlib.Path) -> tokenizers.Tokenizer:
    """Load `tokenizer.json`, with truncation and padding disabled.

    Raises:
        UserError: The file is missing or broken.
    """
    path = directory / 'tokenizer.json'
    if not path.is_file():
        older = [p.name for p in map(directory.joinpath, _OLDER_FILES) if p.is_file()]
        if older:
            raise errors.UserError(
                f'{directory} has {older[0]} but no tokenizer.json: make one with transformers, '
                'AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY).'
            )
        raise errors.UserError(f'There is no tokenizer.json in {directory}.')
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library has no more specific exception.
        raise errors.UserError(
            f'{path} is not a tokenizer ({error}); download it again.'
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_settings(directory: pathlib.Path) -> dict[str, Any]:
    """Read `tokenizer_config.json`, and add missing keys from `special_tokens_map.json`.

    Either file may be missing.

    Raises:
        UserError: A file is broken.
    """
    return {
        **_read_json(directory / 'special_tokens_map.json'),
        **_read_json(directory / 'tokenizer_config.json'),
    }


def named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Return the text of each special token that chat templates can use, such as '<s>'.

    The key is the token's name in templates, such as 'bos_token'.
    """
    texts = {
        name: value.get('content') if isinstance(value, dict) else value
        for name, value in settings.items()
        if name in _NAMES
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def eos_id(directory: pathlib.Path, tokenizer: tokenizers.Tokenizer, named: dict[str, str]) -> int:
    """Return the id of the end token.

    The end token is `eos_token` of the tokenizer settings. If that is not set, it is `eos_token_id`
    of `generation_config.json` or else of `config.json`. If `eos_token_id` is a list of ids, the
    first of them is used.

    Raises:
        UserError: No file names an end token, it is not in the vocabulary, or a file is broken.
    """
    if 'eos_token' in named:
        return _id(directory, tokenizer, named, 'eos_token')
    for name in ('generation_config.json', 'config.json'):
        token_id = _read_json(directory / name).get('eos_token_id')
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]
        if token_id is None or token_id == []:
            continue
        if not isinstance(token_id, int) or not _is_token(tokenizer, token_id):
            raise errors.UserError(
                f'{directory / name} has eos_token_id = {errors.short_repr(token_id)}, which is '
                'not a token id of tokenizer.json.'
            )
        return token_id
    raise errors.UserError(
        f'{directory} does not say which token ends a text: set eos_token in tokenizer_config.json.'
    )


def bos_id(
    directory: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    named: dict[str, str],
    settings: dict[str, Any],
) -> int | None:
    """Return the id of the token that every text starts with, or None.

    The setting `add_bos_token` determines whether there is such a token. If it is not set, the
    post-processor in `tokenizer.json` determines it.

    Raises:
        UserError: The token is not in the vocabulary.
    """
    adds = settings.get('add_bos_token')
    if adds is None:
        plain_ids = tokenizer.encode('a', add_special_tokens=False).ids
        full_ids = tokenizer.encode('a', add_special_tokens=True).ids
        return full_ids[0] if full_ids[:1] != plain_ids[:1] else None
    return _id(directory, tokenizer, named, 'bos_token') if adds and 'bos_token' in named else None


def _is_token(tokenizer: tokenizers.Tokenizer, number: int) -> bool:
    return number is not True and 0 <= number < 2**32 and tokenizer.id_to_token(number) is not None


def _id(
    directory: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    named: dict[str, str],
    name: str,
) -> int:
    token_id = tokenizer.token_to_id(named[name])
    if token_id is None:
        raise errors.UserError(
            f'{directory} names {named[name]!r} as {name}, which tokenizer.json does not have.'
        )
    return token_id


def chat_template(directory: pathlib.Path, settings: dict[str, Any]) -> str | None:
    """Return the model's chat template in Jinja, or None.

    The template comes from `chat_template.jinja` or else from `tokenizer_config.json`. If
    `tokenizer_config.json` has several named templates, the template named 'default' is used.

    Raises:
        UserError: The template is not text, or is not UTF-8.
    """
    path = directory / 'chat_template.jinja'
    try:
        if path.is_file():
            return path.read_text('utf-8')
        template = settings.get('chat_template')
        if isinstance(template, list):
            template = {entry['name']: entry['template'] for entry in template}.get('default')
    except (UnicodeDecodeError, KeyError, TypeError) as error:
        raise errors.UserError(
            f'The chat template in {directory} is broken ({error!r}).'
        ) from error
    if template is not None and not isinstance(template, str):
        raise errors.UserError(
            f'The chat template in {directory} must be text; it is {template!r:.60}.'
        )
    return template


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return files.read_json(path, dict, 'download it again') if path.is_file() else {}

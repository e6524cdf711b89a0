"""Prompt sets: the built-in sets of each language, and sets of the user.

Each language has the set `strict`, our own, and the set `paper`, which follows the paper. The flag
`--prompts` names a set, or a TOML file with a table for each language code.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink.language_schema import PromptSet, parse_prompt_sets
from malora_jax.ultralink.languages import LANGUAGES, Language, is_file, read_file
from malora_jax.ultralink.settings import setting

STRICT = 'strict'


def prompts_setting() -> Any:
    """Declare a field for the name or the path of a prompt set."""
    # Not recorded, because the manifest has a digest of the prompts.
    return setting(
        'Prompt set: strict = our own; paper = the question types, criteria and translation rules '
        'of the paper; or the path of a TOML file with your own prompts.',
        STRICT,
        recorded=False,
    )


def find(language: Language, name: str) -> PromptSet:
    """Return a prompt set of a language; it is empty if a user's file lacks the language.

    Args:
        language: Language of the prompts.
        name: Name of a set in the file of the language, or path of a TOML file.

    Raises:
        UserError: There is no such set, or the file is not valid.
    """
    if is_file(name):
        return _read(name).get(language.code, PromptSet())
    if name not in language.prompts:
        unknown = unknown_name(f'prompt set of {language.name}', name, language.prompts)
        raise UserError(f'{language.path} has no [prompts.{name}]: {unknown}')
    return language.prompts[name]


def find_all(name: str) -> list[tuple[Language, PromptSet]]:
    """Return each language that has a prompt set, and the set.

    Args:
        name: Name or path of the set.

    Raises:
        UserError: No language has the set, or the file is not valid.
    """
    names = {each for language in LANGUAGES.values() for each in language.prompts}
    if not is_file(name) and name not in names:
        raise unknown_name('prompt set', name, names)
    owners = [each for each in LANGUAGES.values() if is_file(name) or name in each.prompts]
    return [(language, find(language, name)) for language in owners]


def missing(part: str, language: Language, name: str) -> UserError:
    """Return the error for a set that lacks a part.

    Args:
        part: Name of the part, a field of `PromptSet`.
        language: Language of the prompts.
        name: Name or path of the set.
    """
    table = language.code if is_file(name) else f'prompts.{name}'
    owner = name if is_file(name) else language.path
    return UserError(f'{owner} lacks {table}.{part}, which this stage needs.')


def digest(value: Any) -> str:
    """Return the SHA-256 digest of nested dataclasses, lists and dicts, in hexadecimal."""
    text = json.dumps(value, default=dataclasses.asdict, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _read(path: str) -> dict[str, PromptSet]:
    return parse_prompt_sets(read_file(pathlib.Path(path)), path)

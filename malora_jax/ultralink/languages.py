"""Languages of the data: the built-in ones, and a user's own.

A language is a TOML file (see `language_schema`). The built-in languages are the files in the
folder `language_files`. A command adds the user's own files before it reads any row.
"""

import dataclasses
import hashlib
import importlib.resources
import pathlib
from collections.abc import Iterable

from malora_jax import errors
from malora_jax.errors import UserError
from malora_jax.ultralink import paper_statistics
from malora_jax.ultralink.language_schema import LanguageFields, parse_language

_FOLDER = 'language_files'
_SUFFIX = '.toml'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Language(LanguageFields):
    """A language of the data.

    Attributes:
        path: Path of the file, for messages; its name for a built-in language.
        own_digest: SHA-256 digest of the file, in hexadecimal; '' for a built-in language.
    """

    path: str
    own_digest: str = ''


def get_language(code: str, flag: str = '--language') -> Language:
    """Return the language with a code.

    Args:
        code: Language code.
        flag: Flag of the command that names the file of a user's language, for messages.

    Raises:
        UserError: There is no such language.
    """
    if code not in LANGUAGES:
        raise unknown_language(code, flag)
    return LANGUAGES[code]


def unknown_language(code: str, flag: str) -> UserError:
    """Return the error for an unknown language code, with suggestions; see `get_language`."""
    unknown = errors.unknown_name('language', code, LANGUAGES)
    if '.' in code or '/' in code:
        return UserError(f'{unknown} (The path of the file of a language must end in {_SUFFIX}.)')
    return UserError(
        f'{unknown} (For a language of your own, name its file: {flag}={code}{_SUFFIX}.)'
    )


def is_file(name: str) -> bool:
    """Return whether the value of a flag is the path of a TOML file, not a name."""
    return name.endswith(_SUFFIX)


def read_file(path: pathlib.Path) -> str:
    """Return the text of a TOML file of the user.

    Raises:
        UserError: The file is missing or not UTF-8.
    """
    try:
        # With or without the byte order mark that some editors write.
        return path.read_text('utf-8-sig')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8.') from error


def add_file(path: pathlib.Path) -> Language:
    """Add the language of a user's file, for the rest of the process.

    A file with the code of a built-in language replaces this language.

    Raises:
        UserError: The file is missing or not valid (see `language_schema.parse_language` and
            `own_language_checks`).
    """
    # Imported here because it uses the languages.
    from malora_jax.ultralink import own_language_checks

    text = read_file(path)
    fields = parse_language(text, str(path))
    digest = hashlib.sha256(text.encode()).hexdigest()
    language = _language(fields, str(path), own_digest=digest)
    own_language_checks.check(language)
    add([language])
    own_language_checks.check_demonstrations(language)
    return language


def add(languages: Iterable[Language]) -> None:
    """Add languages, such as those of the parent process in a worker process."""
    LANGUAGES.update({language.code: language for language in languages})


def own_languages() -> list[Language]:
    """Return the languages that are not built in."""
    return [language for language in LANGUAGES.values() if language.own_digest]


def _language(fields: LanguageFields, path: str, own_digest: str = '') -> Language:
    values = {each.name: getattr(fields, each.name) for each in dataclasses.fields(fields)}
    return Language(**values, path=path, own_digest=own_digest)


def _built_in() -> dict[str, Language]:
    """Return the built-in languages: first those of the paper, in its order."""
    files = importlib.resources.files(__package__) / _FOLDER
    paths = {path.name.removesuffix(_SUFFIX): path for path in files.iterdir()}
    rank = {code: number for number, code in enumerate(paper_statistics.LANGUAGES)}
    codes = sorted(paths, key=lambda code: (rank.get(code, len(rank)), code))
    names = {code: f'{code}{_SUFFIX}' for code in codes}
    return {
        code: _language(parse_language(paths[code].read_text('utf-8'), names[code]), names[code])
        for code in codes
    }


LANGUAGES = _built_in()

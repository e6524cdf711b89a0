"""Stage `import`: read the 20 files of the released dataset, and validate each row.

Rows are unchanged except for the new fields `language` and `subset`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax import files, hub
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink.conversations import data_fault
from malora_jax.ultralink.release_export import FILE_NAMES, split_id
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import ItemOutcome, PreparedStage, StageRun, excerpt

STAGE = 'import'
# Hugging Face dataset with the released files.
REPOSITORY = 'R0k1e/UltraLink'
_COMMIT = re.compile(r'[0-9a-f]{40}')
# An invalid row has these fields, a description of its fault and the line itself, and its id.
_FAULT_FIELD, _LINE_FIELD = '\0fault', '\0line'


def download(revision: str) -> pathlib.Path:
    """Return the folder of the released files at a commit, downloading them if they are not cached.

    Args:
        revision: Commit hash. A branch is not allowed because its content may change: English chat
            was replaced in 2024.

    Raises:
        UserError: The revision is not a commit hash or does not exist, or the Hugging Face Hub
            cannot be reached (see `hub.download_snapshot`).
        OSError: The cache cannot be written.
    """
    if not _COMMIT.fullmatch(revision):
        raise UserError(
            f'--revision={revision} must be a full commit hash of {REPOSITORY} (40 hexadecimal '
            'digits), because a branch may change.'
        )
    patterns = [pattern for name in FILE_NAMES for pattern in (name, f'*/{name}')]
    instead = 'give a folder with the files in --input'
    return hub.download_snapshot(
        REPOSITORY, patterns, repo_type='dataset', alternative=instead, revision=revision
    )


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the paths of the 20 released files in a folder or its subfolders.

    Raises:
        UserError: The folder or a file is missing, or two files have the same name.
    """
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}.')
    paths_by_name = {name: sorted(folder.rglob(name)) for name in FILE_NAMES}
    missing = [name for name, paths in paths_by_name.items() if not paths]
    if missing:
        raise UserError(f'{folder} lacks {len(missing)} of the 20 files: {", ".join(missing)}.')
    for paths in paths_by_name.values():
        if len(paths) > 1:
            raise UserError(f'{paths[0]} and {paths[1]} have the same name: remove one.')
    return [paths[0] for paths in paths_by_name.values()]


@dataclasses.dataclass(frozen=True)
class ImportConfig(Settings):
    """Settings of the stage `import`: the source of the released files."""

    section = STAGE
    input: pathlib.Path | None = setting(
        'Folder with the 20 files of the released dataset, instead of --revision.',
        None,
        recorded=False,
    )
    revision: str | None = setting(
        f'Commit hash of the Hugging Face dataset {REPOSITORY} to download, instead of --input.',
        None,
        recorded=False,
    )


def find_inputs(config: ImportConfig) -> list[pathlib.Path]:
    """Return the paths of the released files, from the folder or the commit in the settings.

    Raises:
        UserError: Neither or both settings are given, a file is missing, or the download fails.
    """
    if bool(config.input) == bool(config.revision):
        raise UserError('Give either --input, a folder, or --revision, a commit to download.')
    return find_files(config.input or download(config.revision or ''))


def prepare(run: StageRun[ImportConfig]) -> PreparedStage:
    """Return the function that copies a row, or drops an invalid row and reports it on stderr.

    Raises:
        UserError: An input does not have the name of a released file.
    """
    for path in run.inputs:
        if path.name not in FILE_NAMES:
            raise UserError(f'{path} is not one of the 20 released files, such as {FILE_NAMES[0]}.')

    async def process(row: Row) -> ItemOutcome:
        fault = row.fields.get(_FAULT_FIELD)
        if fault:
            return ItemOutcome(
                reason='bad row',
                counts={f'bad rows of {_file(row)}': 1},
                message=f'{row.location}: {fault}',
                detail=fault,
                text=excerpt(row.fields[_LINE_FIELD]),
            )
        return ItemOutcome([row.fields], counts={f'rows of {_file(row)}': 1})

    return PreparedStage(process)


def _file(row: Row) -> str:
    return pathlib.Path(row.location.rpartition(':')[0]).name


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the rows of released files.

    An invalid row has a description of its fault in place of its fields.
    """
    for path in paths:
        language, _, subset = path.stem.partition('_')
        seen_numbers: set[int] = set()
        with path.open('rb') as lines:
            for line_number, line in enumerate(lines, start=1):
                fields = _parsed(line)
                fault = fields.get(_FAULT_FIELD) or _row_fault(
                    fields, (language, subset), seen_numbers
                )
                if fault:
                    text = line.decode('utf-8', 'replace').rstrip()
                    data = {'id': fields.get('id', ''), _FAULT_FIELD: fault, _LINE_FIELD: text}
                else:
                    data = _row(fields, language, subset)
                yield Row(f'{path}:{line_number}', data)


def _parsed(line: bytes) -> Mapping[str, Any]:
    """Return the fields of a line.

    If the line is not a JSON object, the only field is `_FAULT_FIELD`, which describes the fault.
    """
    try:
        fields = files.parse_json(line, 'the row')
    except UserError as error:
        return {_FAULT_FIELD: str(error)}
    return fields if isinstance(fields, dict) else {_FAULT_FIELD: 'not a JSON object'}


def _row_fault(fields: Mapping[str, Any], group: tuple[str, str], seen_numbers: set[int]) -> str:
    """Return a description of the fault in a row; '' for a valid row.

    Args:
        fields: Fields of the row.
        group: Language and subset of the file.
        seen_numbers: Numbers in the ids of the earlier valid rows of the file. If this row is
            valid, this function adds its number.
    """
    unknown = set(fields) - {'id', 'data'}
    if unknown:
        return f'unknown field {min(unknown)!r}'
    identifier = fields.get('id')
    parts = split_id(identifier) if isinstance(identifier, str) else None
    if parts is None or parts[:2] != group:
        return f"'id' is {identifier!r}; it must be {'_'.join(group)}_ followed by a number"
    if parts[2] in seen_numbers:
        return f'an earlier row has the same id {identifier!r}'
    fault = data_fault(fields)
    if not fault:
        seen_numbers.add(parts[2])
    return fault


def _row(fields: Mapping[str, Any], language: str, subset: str) -> dict[str, Any]:
    return {
        'id': fields['id'],
        'language': language,
        'subset': subset,
        'data': fields['data'],
    }

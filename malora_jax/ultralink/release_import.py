"""Stage `import`: read conversations of public datasets, and the files of a release.

Rows of public datasets are recognized by their fields and repaired (see `public_datasets`). Rows of
released files, LANGUAGE_SUBSET.jsonl, are validated and keep their ids. They are unchanged
except for the new fields `language`, `subset`, and `source` if the release has attributions.
"""

import codecs
import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from malora_jax import files, hub
from malora_jax.data.compressed_files import open_decompressed
from malora_jax.data.file_rows import DECODER, Row, check_file, file_kind, read_rows
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, public_datasets, release_export, shards
from malora_jax.ultralink.conversations import SUBSETS, data_fault
from malora_jax.ultralink.public_datasets import PublicDataset
from malora_jax.ultralink.release_export import FILE_NAMES, file_names, split_id
from malora_jax.ultralink.settings import setting
from malora_jax.ultralink.stage import ItemOutcome, PreparedStage, StageRun, excerpt

STAGE = 'import'
# Hugging Face dataset with the released files.
REPOSITORY = 'R0k1e/UltraLink'
_COMMIT = re.compile(r'[0-9a-f]{40}')
_RELEASED_NAME = re.compile(rf'[a-z]+_({"|".join(SUBSETS)})\.jsonl')
# Number of the first rows of a file, one of which must have a known format.
_FIRST_ROWS = 10
_DATA_SUFFIXES = ('.json', '.jsonl', '.parquet')
# An invalid row has these fields, a description of its fault and the line itself, and its id.
_FAULT_FIELD, _LINE_FIELD = '\0fault', '\0line'
_NO_OBJECT = 'not a JSON object'


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

    Files of other languages with names of the same form are included. The output of `export` may
    have fewer files, those of the subsets that were exported.

    Raises:
        UserError: The folder or a file is missing, or two files have the same name.
    """
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}.')
    if _is_exported(folder):
        return _exported_files(folder)
    paths_by_name: dict[str, list[pathlib.Path]] = {name: [] for name in FILE_NAMES}
    for path in sorted(folder.rglob('*.jsonl')):
        if _RELEASED_NAME.fullmatch(path.name):
            paths_by_name.setdefault(path.name, []).append(path)
    missing = [name for name, paths in paths_by_name.items() if not paths]
    if missing:
        raise UserError(
            f'{folder} lacks {len(missing)} of the 20 files: {", ".join(missing)}. To import only '
            'the others, list them in --input.'
        )
    found = [path for paths in paths_by_name.values() for path in paths]
    _check_distinct_names(found)
    return found


def _check_distinct_names(paths: Sequence[pathlib.Path]) -> None:
    """Check that no two released files have the same name, because their rows have the same ids.

    Raises:
        UserError: Two files have the same name.
    """
    first: dict[str, pathlib.Path] = {}
    for path in paths:
        if first.setdefault(path.name, path) != path:
            raise UserError(f'{first[path.name]} and {path} have the same name: remove one.')


def _is_exported(folder: pathlib.Path) -> bool:
    return (folder / release_export.TRAINING_FOLDER).is_dir()


def _exported_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the paths of the released files in the output directory of `export`.

    Raises:
        UserError: A file is missing although its attribution is there, or there is no file.
    """
    present = {path.name for path in folder.iterdir() if _RELEASED_NAME.fullmatch(path.name)}
    known = [name for name in file_names() if attribution.path_of(folder / name).exists()]
    missing = [name for name in known if name not in present]
    if missing or not present:
        raise UserError(
            f'{folder} lacks {", ".join(missing) or "all released files"}: export it again.'
        )
    order = [name for name in file_names() if name in present]
    return [folder / name for name in (*order, *sorted(present.difference(order)))]


@dataclasses.dataclass(frozen=True)
class ImportConfig(PublicDataset):
    """Settings of the stage `import`: where the files are, and facts on a public dataset."""

    section = STAGE
    input: Sequence[pathlib.Path] = setting(
        'Files of public datasets (JSON, JSON Lines, Parquet), released files, or folders of '
        'either, instead of --revision.',
        (),
        recorded=False,
    )
    revision: str | None = setting(
        f'Commit hash of the Hugging Face dataset {REPOSITORY} to download, instead of --input.',
        None,
        recorded=False,
    )


def find_inputs(config: ImportConfig) -> list[pathlib.Path]:
    """Return the paths of the files to read, from the inputs or the commit in the settings.

    Raises:
        UserError: Neither or both settings are given, a file is missing, or the download fails.
    """
    if bool(config.input) == bool(config.revision):
        raise UserError(
            'Give either --input, a folder, or --revision, a commit to download; --input may also '
            'be a list of files.'
        )
    if config.revision:
        return find_files(download(config.revision))
    return [file for path in config.input for file in _files_at(path)]


def _files_at(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the data files at a path: itself, those of a release, or all in a folder."""
    if not path.is_dir():
        check_file(path)
        return [path]
    inside = sorted(file for file in path.rglob('[!.]*') if file.is_file())
    public = [
        file
        for file in inside
        if file_kind(file) in _DATA_SUFFIXES and not attribution.is_attribution(file)
    ]
    # A user may have copied a few of the released files. A folder with most of them lacks some.
    num_released = len({file.name for file in inside} & {*FILE_NAMES})
    is_release = _is_exported(path) or num_released > len(FILE_NAMES) / 2
    return find_files(path) if is_release or not public else public


def prepare(run: StageRun[ImportConfig]) -> PreparedStage:
    """Return the function that converts a row, or drops an invalid row and reports it on stderr.

    Raises:
        UserError: An input has the name of a released file, but of an unknown language; two
            released files have the same name; or an input is a file of a public dataset, and its
            first rows have no known format.
    """
    released = file_names()
    public = [path for path in run.inputs if path.name not in released]
    _check_languages(public)
    _check_distinct_names([path for path in run.inputs if path.name in released])
    for path in public:
        _check_first_rows(path)

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
        if _file(row) not in released:
            return public_datasets.convert(row, _file(row), run.config)
        return ItemOutcome([row.fields], counts={f'rows of {_file(row)}': 1})

    sources = [path for path in map(attribution.path_of, run.inputs) if path.is_file()]
    return PreparedStage(process, {'attribution': shards.digest(sources)} if sources else {})


def _check_languages(paths: Sequence[pathlib.Path]) -> None:
    """Check that no file has the name of a released file of an unknown language.

    Args:
        paths: Files that are not released files of a known language.

    Raises:
        UserError: There is such a file; the message has the flag that adds the language.
    """
    unknown = [path for path in paths if _RELEASED_NAME.fullmatch(path.name)]
    if unknown:
        flag = ','.join(sorted({f'{path.name.partition("_")[0]}.toml' for path in unknown}))
        are_not_among = 'is not one of' if len(unknown) == 1 else 'are not among'
        raise UserError(
            f'{", ".join(map(str, unknown))} {are_not_among} the 20 released files, such as '
            f'{FILE_NAMES[0]}: for a language of your own, name its file: --language-files={flag}.'
        )


def _check_first_rows(path: pathlib.Path) -> None:
    """Check that any of the first rows of a file of a public dataset has a known format.

    Raises:
        UserError: None of them has, or one is a released row.
    """
    rows = list(itertools.islice(_read_public(path), _FIRST_ROWS))
    valid = [row for row in rows if _FAULT_FIELD not in row.fields]
    if rows and not valid:
        raise UserError(f'{rows[0].location}: {rows[0].fields[_FAULT_FIELD]}.')
    public_datasets.check_first_rows(valid)


def _file(row: Row) -> str:
    # Lines are numbered after a colon; rows of arrays and of Parquet after ' row '.
    return pathlib.Path(re.sub(r'(:| row )\d+$', '', row.location)).name


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the rows of released files and of public datasets.

    An invalid row has a description of its fault in place of its fields.

    Raises:
        UserError: A JSON array or a Parquet file is broken, or an attribution is.
    """
    seen_ids: set[str] = set()
    released = file_names()
    for path in paths:
        if path.name in released:
            yield from _read_released(path)
        else:
            rows = _read_public(path)
            yield from public_datasets.with_unique_ids(rows, path.name.partition('.')[0], seen_ids)


def _read_public(path: pathlib.Path) -> Iterator[Row]:
    """Yield the rows of a file of a public dataset: an array or lines of JSON, or Parquet."""
    if file_kind(path) == '.parquet':
        return read_rows(path)
    with open_decompressed(path) as file:
        start = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    is_array = file_kind(path) == '.json' and start.startswith(b'[')
    return _read_array(path) if is_array else _read_lines(path)


def _read_array(path: pathlib.Path) -> Iterator[Row]:
    """Yield the rows of a JSON file that is an array, which may be compressed."""
    with open_decompressed(path) as file:
        text = file.read().decode('utf-8-sig', 'surrogateescape')
    rows = files.parse_json(text, str(path), decode=DECODER.decode)
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            fields = _faulty(_NO_OBJECT, json.dumps(fields, ensure_ascii=False))
        yield Row(f'{path} row {number}', fields)


def _read_lines(path: pathlib.Path) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file, which may be compressed; blank lines are skipped."""
    with open_decompressed(path) as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                fields = _parsed(line, DECODER.decode)
                if _FAULT_FIELD in fields:
                    fields = _faulty(fields[_FAULT_FIELD], _text(line))
                yield Row(f'{path}:{number}', fields)


def _read_released(path: pathlib.Path) -> Iterator[Row]:
    """Yield the rows of a released file, with their sources if the release has attributions."""
    language, _, subset = path.stem.partition('_')
    seen_numbers: set[int] = set()
    sources = attribution.read_sources(path)
    with path.open('rb') as lines:
        for line_number, line in enumerate(lines, start=1):
            fields = _parsed(line)
            fault = fields.get(_FAULT_FIELD) or _row_fault(fields, (language, subset), seen_numbers)
            if fault:
                data = _faulty(fault, _text(line), fields.get('id', ''))
            else:
                data = _row(fields, language, subset)
            released_id, source = next(sources, ('', {}))
            if source and not fault:
                if released_id != data['id']:
                    raise UserError(
                        f'{attribution.path_of(path)}:{line_number} must have the id '
                        f'{data["id"]!r} of the same line in {path.name}: restore the file, or '
                        'remove it.'
                    )
                data['source'] = source
            yield Row(f'{path}:{line_number}', data)


def _text(line: bytes) -> str:
    return line.decode('utf-8', 'replace').rstrip()


def _faulty(fault: str, text: str, identifier: Any = '') -> dict[str, Any]:
    """Return the fields of an invalid row."""
    return {'id': identifier, _FAULT_FIELD: fault, _LINE_FIELD: text}


def _parsed(line: bytes, decode: Callable[[str], Any] = json.loads) -> Mapping[str, Any]:
    """Return the fields of a line.

    If the line is not a JSON object, the only field is `_FAULT_FIELD`, which describes the fault.
    """
    try:
        fields = files.parse_json(line, 'the row', decode=decode)
    except UserError as error:
        return {_FAULT_FIELD: str(error)}
    return fields if isinstance(fields, dict) else {_FAULT_FIELD: _NO_OBJECT}


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

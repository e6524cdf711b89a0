"""Command `explain`: what each stage did with an item, from its rows, rejects and manifest.

Two stages change ids, so that an item is found under several: `documents` makes LANGUAGE-ID-NUMBER
of the id of a document, and `translate` makes LANGUAGE-ID of the id of a conversation. A document
is also found as LANGUAGE-ID. The released files have new ids; attributions have those before, and
without them, an item is recognized by its messages.
"""

import dataclasses
import pathlib
import re
import shlex
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from malora_jax import commands
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, conversations, manifest, release_export, shards
from malora_jax.ultralink.manifest import StageManifest, read_manifest
from malora_jax.ultralink.pipeline import NAMES
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.text.printing import indented, printable

COMMAND = 'explain'
# Stages whose requests the cache has by the id of the item.
_ASKING_STAGES = ('dialogues', 'criteria', 'translate', 'answers', 'judge')


@dataclasses.dataclass(frozen=True)
class ExplainConfig(Settings):
    """Settings of the command `explain`."""

    section = COMMAND
    id: str = setting(
        'Id of the item, in any stage or in the released files; as the first argument, it needs no '
        'flag.'
    )
    stages: Sequence[pathlib.Path] = setting(
        'Output directories of stages, finished or not, and of `export`; or directories that '
        'contain them.'
    )


def run(run: StageRun[ExplainConfig]) -> tuple[str, int]:
    """Return the way of an item through the stages as text, and exit status 0."""
    return explain(run.config.id, run.config.stages), 0


def explain(identifier: str, paths: Sequence[pathlib.Path]) -> str:
    """Return what each stage did with an item, as text.

    Args:
        identifier: Id of the item, in any stage.
        paths: Output directories of stages and of `export`, or directories that contain them.

    Raises:
        UserError: There is no output of a stage, an output is broken, or no stage has the item.
    """
    directories, releases = _stage_directories(paths), _release_directories(paths)
    identifier = _unreleased_id(identifier, directories, releases)
    sources = _source_ids(identifier, directories)
    item = _FollowedItem({_normal(identifier)})
    found: list[str] = []
    without: list[str] = []
    for path, stage in directories.items():
        heading = f'{stage.stage} ({path}{"" if stage.complete else ", not complete"})'
        lines = item.follow(path, stage, sources[path])
        if lines:
            found.append(f'{heading}\n{_listed(lines)}')
        else:
            without.append(heading + _unrecorded_note(path, stage))
    if not found:
        raise UserError(
            f'No stage in {", ".join(map(str, paths))} has an item {identifier!r}: give its id '
            'as it is in a row or in a rejects file.'
        )
    for folder in releases if item.released_data else ():
        places = list(_released_places(folder, item.released_data))
        found.append(f'export ({folder})\n{_listed(places or ["not among the released rows"])}')
    if without:
        found.append(f'Outputs without this item:\n{_listed(without)}')
    return printable('\n'.join(found))


@dataclasses.dataclass
class _FollowedItem:
    """An item that is followed from one stage to the next.

    Attributes:
        ids: Ids of the item, and of all rows that were made of it so far.
        released_data: Released file and released messages of these rows.
    """

    ids: set[str]
    released_data: list[tuple[str, list[str]]] = dataclasses.field(default_factory=list)

    def follow(self, path: pathlib.Path, stage: StageManifest, sources: set[str]) -> list[str]:
        """Return what a stage did with the item, as lines, and add the ids of its rows.

        Args:
            path: Output directory of the stage.
            stage: Manifest of the directory.
            sources: Ids of the items of this stage of which the item was made.
        """
        lines: list[str] = []
        asked: list[str] = []
        known = frozenset(self.ids)
        entered = known | sources
        for row in shards.read_rejects(path, stage):
            if entered & _names(stage, _id(row)):
                lines += _rejected(row)
                asked += [row.fields['id']] if row.fields['attempts'] else []
        for row in shards.read_listed(path, stage):
            identifier, origin = _id(row), origin_id(stage, _id(row))
            names = _names(stage, origin)
            if names & entered:
                lines.append(f'kept as {identifier} ({pathlib.Path(row.location).name})')
                asked.append(origin_id(stage, str(row.fields['id'])) or '')
            if names & known or identifier in known:
                self.ids.add(identifier)
                self.released_data += _released_data(row)
        return lines + _cache_commands(path, stage, asked)


def _names(stage: StageManifest, identifier: str | None) -> set[str]:
    """Return the ids that a user may give for an item of a stage; none for None.

    The segments of a document begin with its language, so a document may be given with it, too.
    """
    if identifier is None:
        return set()
    is_document = stage.stage == 'documents'
    return {
        identifier,
        *([f'{stage.settings.get("language")}-{identifier}'] if is_document else ()),
    }


def _cache_commands(path: pathlib.Path, stage: StageManifest, items: Iterable[str]) -> list[str]:
    """Return the commands that show the requests for items, if the cache is in its usual place."""
    cache = path.parent / 'answers.sqlite'
    if stage.stage not in _ASKING_STAGES or not cache.is_file():
        return []
    return [
        'prompts and replies: '
        + commands.spell(
            'python -m experiments.ultralink cache '
            f'{shlex.quote(f"--cache={cache}")} {shlex.quote(f"--item={item}")}'
        )
        for item in dict.fromkeys(items)
    ]


def origin_id(stage: StageManifest, identifier: str) -> str | None:
    """Return the id of the item that a stage has made a row of, from the id of the row.

    Args:
        stage: Manifest of the stage.
        identifier: Id of the row.

    Returns:
        Id of the item; None if the stage cannot have written a row with this id.
    """
    patterns = {'documents': r'{}-(.+)-\d+', 'translate': r'{}-(.+)'}
    if stage.stage not in patterns:
        return identifier
    language = re.escape(str(stage.settings.get('language')))
    match = re.fullmatch(patterns[stage.stage].format(language), identifier, re.DOTALL)
    return match[1] if match else None


def _unreleased_id(
    identifier: str,
    directories: dict[pathlib.Path, StageManifest],
    releases: Sequence[pathlib.Path],
) -> str:
    """Return the id that a released row had before `export`; any other id is unchanged."""
    parts = release_export.split_id(identifier)
    name = f'{parts[0]}_{parts[1]}.jsonl' if parts else ''
    files = [folder / name for folder in releases if name and (folder / name).is_file()]
    for path in filter(pathlib.Path.is_file, map(attribution.path_of, files)):
        for row in shards.read_json_rows(path):
            if row.fields.get('id') == identifier:
                return shards.text_field(row, 'conversation')
    # Releases of earlier versions have no attributions.
    released = [
        (name, row.fields.get('data'))
        for file in files
        for row in shards.read_json_rows(file)
        if row.fields.get('id') == identifier
    ]
    for path, stage in reversed(directories.items()) if released else ():
        for row in shards.read_listed(path, stage):
            if any(data in released for data in _released_data(row)):
                return _id(row)
    return identifier


def _source_ids(
    identifier: str, directories: dict[pathlib.Path, StageManifest]
) -> dict[pathlib.Path, set[str]]:
    """Return the ids of the items that the item was made of, by the directory that reads them."""
    chain, sources = {_normal(identifier)}, {}
    for path, stage in reversed(directories.items()):
        origins = {origin_id(stage, each) for each in chain} - {None}
        sources[path] = {origin for origin in origins if origin}
        # Documents in other languages may have the same ids.
        if stage.stage != 'documents':
            chain |= sources[path]
    return sources


def _stage_directories(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, StageManifest]:
    """Return the manifest of each output directory of a stage, in the order of the pipeline.

    Raises:
        UserError: A path does not exist, a manifest is broken, or there is none.
    """
    missing = next((path for path in paths if not path.is_dir()), None)
    if missing:
        raise UserError(f'There is no directory {missing}.')
    files = sorted({file for path in paths for file in path.rglob(manifest.NAME)})
    found = {file.parent: read_manifest(file.parent) for file in files}
    if not found:
        raise UserError(f'{", ".join(map(str, paths))} has no output of a stage.')
    order = {name: number for number, name in enumerate(NAMES)}
    return dict(sorted(found.items(), key=lambda each: order.get(each[1].stage, len(order))))


def _release_directories(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Return the output directories of `export`."""
    names = release_export.file_names()
    return sorted({file.parent for path in paths for name in names for file in path.rglob(name)})


def _unrecorded_note(path: pathlib.Path, stage: StageManifest) -> str:
    number = shards.count_unrecorded(path, stage)
    return f': an earlier version did not record its dropped items ({number:,})' if number else ''


def _rejected(row: Row) -> list[str]:
    """Return a reject as lines of text."""
    fields = row.fields
    detail = f' ({fields["detail"]})' if fields['detail'] else ''
    attempts = f', after {fields["attempts"]} attempts' if fields['attempts'] else ''
    lines = [f'rejected: {fields["reason"]}{detail}{attempts}; input {fields["location"]}']
    if fields['text']:
        lines.append(indented(fields['text']))
    # Files of earlier versions have no refusals; a single one is the reason.
    refusals = fields.get('refusals', ())
    if fields['attempts'] > 1:
        lines += [f'  attempt {number}: {each}' for number, each in enumerate(refusals, 1)]
    return lines


def _released_data(row: Row) -> list[tuple[str, list[str]]]:
    """Return the released file of a conversation and its released messages; [] for other rows."""
    if 'data' not in row.fields:
        return []
    conversation = conversations.read(row)
    name = f'{conversation.language}_{conversation.subset}.jsonl'
    return [(name, release_export.released_row(conversation, 0)['data'])]


def _released_places(
    folder: pathlib.Path, released_data: Sequence[tuple[str, Any]]
) -> Iterator[str]:
    """Yield the ids and places of conversations in the output directory of `export`."""
    for name in sorted({name for name, _ in released_data}):
        if (folder / name).is_file():
            for row in shards.read_json_rows(folder / name):
                if (name, row.fields.get('data')) in released_data:
                    yield f'released as {_id(row)} ({pathlib.Path(row.location).name})'


def _id(row: Row) -> str:
    return _normal(row.fields.get('id', ''))


def _normal(identifier: Any) -> str:
    """Return an id with composed accents, because keyboards and files may differ in that."""
    return unicodedata.normalize('NFC', str(identifier))


def _listed(lines: Iterable[str]) -> str:
    return textwrap.indent('\n'.join(lines), '  ')

"""Stage `documents`: filter documents in one language, and split them into segments."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from malora_jax.data.compressed_files import open_decompressed
from malora_jax.data.file_rows import Row, check_file
from malora_jax.errors import UserError
from malora_jax.ultralink import attribution, shards
from malora_jax.ultralink.languages import get_language
from malora_jax.ultralink.settings import Settings, language_setting, setting
from malora_jax.ultralink.shards import text_field
from malora_jax.ultralink.stage import ItemOutcome, PreparedStage, StageRun, excerpt
from malora_jax.ultralink.text.chinese_scripts import to_simplified
from malora_jax.ultralink.text.language_identification import describe_language, identify_language
from malora_jax.ultralink.text.segments import segments
from malora_jax.ultralink.text.tokens import TokenCounter
from malora_jax.ultralink.worker_processes import ITEMS_PER_WORKER, WorkerProcesses

STAGE = 'documents'


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(Settings):
    """Settings of document filtering and segmentation. The defaults are the paper's."""

    section = STAGE
    language: str = language_setting('Language code of the documents.')
    min_document_tokens: int = setting(
        'Minimum number of tokens of a document; a shorter one is dropped.', 1000, at_least=1
    )
    max_document_tokens: int = setting(
        'Maximum number of tokens of a document; a longer one is dropped.',
        10_000,
        at_least='min_document_tokens',
    )
    segment_tokens: int = setting(
        'Number of tokens that a segment must stay below.', 2000, at_least=2
    )
    min_segment_tokens: int = setting(
        'Minimum number of tokens of the last segment of a document; a shorter one is dropped.',
        1000,
        at_least=0,
    )
    done: Sequence[pathlib.Path] = setting(
        'Files or directories of rows with `title`, such as the output of an earlier run; '
        'documents with the same titles are dropped.',
        (),
        recorded=False,
    )
    words: Sequence[pathlib.Path] = setting(
        'Blocklists: UTF-8 files with one word or phrase per line; documents that contain any of '
        'them are dropped.',
        (),
        recorded=False,
    )
    license: str = setting(
        'License of documents without the field `license`, for the attribution; default: CC BY-SA '
        '4.0 for pages of Wikipedia, which their field `url` shows, and unknown for others.',
        '',
    )
    workers: int = setting(
        'Number of processes that work at the same time; default: number of CPU cores.',
        os.cpu_count() or 1,
        at_least=1,
        recorded=False,
    )

    def __post_init__(self):
        super().__post_init__()
        name = min('min_document_tokens', 'segment_tokens', key=lambda each: getattr(self, each))
        most = getattr(self, name)
        if self.min_segment_tokens > most:
            raise UserError(
                f'documents.min_segment_tokens is {self.min_segment_tokens}, more than {name} '
                f'({most}), so that a document could lose its only segment: set '
                f'--min-segment-tokens={most} or less.'
            )


def prepare(run: StageRun[DocumentsConfig]) -> PreparedStage:
    """Return the function that splits a document.

    Before that, read the blocklists, and the titles of documents that are done already (from the
    files in the setting `done`).

    Raises:
        UserError: A file is missing or broken.
    """
    config = run.config
    blocklist = _read_blocklist(config.words, config.language) if config.words else None
    segmenter = _DocumentSegmenter(config, run.token_counter, _titles(config.done), blocklist)
    return PreparedStage(
        WorkerProcesses(segmenter, config.workers),
        {'done': shards.digest(config.done), 'words': blocklist.pattern if blocklist else ''},
        ITEMS_PER_WORKER * config.workers,
    )


class _DocumentSegmenter:
    """Callable that receives the row of a document and splits the document into segments."""

    def __init__(
        self,
        config: DocumentsConfig,
        count_tokens: TokenCounter,
        done_titles: frozenset[str],
        blocklist: re.Pattern[str] | None,
    ):
        self._config = config
        self._count_tokens = count_tokens
        self._done_titles = done_titles
        self._blocklist = blocklist

    def __call__(self, row: Row) -> ItemOutcome:
        identifier = _identifier(row)
        title, text = text_field(row, 'title'), text_field(row, 'text').strip()
        if get_language(self._config.language).simplified_characters:
            title, text = to_simplified(title), to_simplified(text)
        reason, detail = self._drop_reason(title, text)
        if reason:
            return ItemOutcome(reason=reason, detail=detail, text=excerpt(text))
        pieces = segments(text, self._config.segment_tokens, self._count_tokens)
        texts = [piece.strip('\n') for piece in pieces if piece.strip()]
        tokens, counts = [self._count_tokens(text) for text in texts], {}
        if tokens[-1] < self._config.min_segment_tokens:
            counts = {'last segments dropped': 1, 'tokens in them': tokens.pop()}
        language = self._config.language
        source = attribution.source_of(row, id=identifier, license=self._config.license)
        rows = [
            {
                'id': f'{language}-{identifier}-{number}',
                'language': language,
                'title': title,
                'text': text,
                'tokens': size,
                'source': source,
            }
            for number, (text, size) in enumerate(zip(texts, tokens, strict=False))
        ]
        return ItemOutcome(rows, '', counts)

    def _drop_reason(self, title: str, text: str) -> tuple[str, str]:
        """Return why a document is dropped, with details; both are '' if the document is kept.

        Cheap checks come first.
        """
        config = self._config
        if not text:
            return 'empty', ''
        if title in self._done_titles:
            return 'done already', f'title {title!r}'
        # A token has at least one byte, so the number of bytes is an upper bound.
        size = len(text.encode())
        if size < config.min_document_tokens:
            return 'short', f'{size} bytes, so fewer than {config.min_document_tokens} tokens'
        listed = self._blocklist and self._blocklist.search(text)
        if listed:
            return 'listed word', listed[0]
        if identify_language(text) != config.language:
            return 'language', f'{describe_language(text)}, not {config.language}'
        tokens = self._count_tokens(text)
        if tokens < config.min_document_tokens:
            return 'short', f'{tokens} tokens, fewer than {config.min_document_tokens}'
        if tokens > config.max_document_tokens:
            return 'long', f'{tokens} tokens, more than {config.max_document_tokens}'
        return '', ''


def _identifier(row: Row) -> str:
    value = row.fields.get('id')
    return str(value) if isinstance(value, int) else text_field(row, 'id')


def _titles(done: Sequence[pathlib.Path]) -> frozenset[str]:
    return frozenset(text_field(row, 'title') for row in shards.read(done))


def _read_blocklist(paths: Sequence[pathlib.Path], language: str) -> re.Pattern[str]:
    """Return a case-insensitive pattern that matches any word or phrase in the files.

    Args:
        paths: UTF-8 text files with one word or phrase per line.
        language: Language code; without spaces between words, words also match inside other words.

    Raises:
        UserError: A file is missing, is not UTF-8 or has no words.
    """
    words: set[str] = set()
    for path in paths:
        check_file(path)
        try:
            with open_decompressed(path) as file:
                phrases = {line.strip() for line in file.read().decode().split('\n')} - {''}
        except UnicodeDecodeError as error:
            raise UserError(f'{path} is not UTF-8.') from error
        if not phrases:
            raise UserError(f'{path} has no words.')
        words |= phrases
    any_of = '|'.join(map(re.escape, sorted(words)))
    pattern = rf'(?<!\w)(?:{any_of})(?!\w)' if get_language(language).word_spaces else any_of
    return re.compile(pattern, re.IGNORECASE)

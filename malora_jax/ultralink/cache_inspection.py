"""Command `cache`: the requests and replies in a reply cache."""

import pathlib
import textwrap
from dataclasses import dataclass

from malora_jax import markdown
from malora_jax.data.file_rows import check_file
from malora_jax.errors import UserError
from malora_jax.ultralink.llm.cache import ReplyCache, open_cache
from malora_jax.ultralink.llm.cached_requests import CachedRequest
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.text.printing import indented, printable

COMMAND = 'cache'
# Number of requests that the overview lists, and length of the quoted beginning of a reply.
_LISTED_REQUESTS, _QUOTED_CHARACTERS = 20, 60


@dataclass(frozen=True)
class CacheConfig(Settings):
    """Settings of the command `cache`."""

    section = COMMAND
    cache: pathlib.Path = setting('SQLite file with the cached replies, such as answers.sqlite.')
    item: str = setting(
        'Id of the item whose requests and replies are shown in full; default: an overview of all '
        'replies, and the latest requests on one line each.',
        '',
    )


def run(run: StageRun[CacheConfig]) -> tuple[str, int]:
    """Return the overview of a cache, or the requests of an item, as text, and exit status 0.

    Raises:
        UserError: There is no such file, it is not a reply cache, or it has no request of the item.
    """
    path, item = run.config.cache, run.config.item
    if not path.exists():
        raise UserError(
            f'There is no data file {path}: give the --cache of a stage, by default answers.sqlite '
            'next to its --output.'
        )
    check_file(path)
    with open_cache(path) as cache:
        if not item:
            return printable(_overview(path, cache)), 0
        parts = [_request_text(request) for request in cache.read_requests(item)]
    if not parts:
        raise UserError(f'{path} has no request of an item {item!r}.')
    return printable('\n\n'.join(parts)), 0


def _overview(path: pathlib.Path, cache: ReplyCache) -> str:
    counts = cache.count_replies()
    replies = sum(row[3] for row in counts)
    head = ('model', 'stage', 'finish reason', 'replies', 'tokens')
    body = [(*row[:3], f'{row[3]:,}', f'{row[4]:,}') for row in counts]
    lines = [f'{path}: {replies:,} replies, {cache.total_tokens:,} tokens of prompts and replies']
    lines += ['', markdown.table([head, *body])]
    latest = cache.read_requests(last=_LISTED_REQUESTS)
    if latest:
        lines += ['', 'Latest requests; --item=ID shows all prompts and replies of an item:']
    for request in latest:
        lines.append(f'  {_summary(request)}: {_quoted(request.reply.text)}')
    return '\n'.join(lines)


def _summary(request: CachedRequest) -> str:
    reply = request.reply
    return (
        f'{request.item}, {request.stage}, attempt {request.sample_index + 1}, '
        f'{reply.finish_reason}, {reply.tokens:,} tokens'
    )


def _quoted(text: str) -> str:
    return textwrap.shorten(text, _QUOTED_CHARACTERS, placeholder='…') or '(no text)'


def _request_text(request: CachedRequest) -> str:
    """Return a request with all its messages and its reply as text."""
    lines = [f'{_summary(request)}, model {request.model}']
    for role, text in (*request.messages, ('reply', request.reply.text)):
        lines += [f'  {role}:', indented(text)]
    return '\n'.join(lines)

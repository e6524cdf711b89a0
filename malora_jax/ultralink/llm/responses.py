"""Responses of OpenAI-compatible endpoints: replies, and errors that are or are not retried."""

import json
import random
from typing import Any

from malora_jax.errors import UserError
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.llm.request_format import PARAMETERS
from malora_jax.ultralink.llm.usage import TokenUsage

# Error codes that concern the messages of one request, not the whole run.
_REFUSALS = ('context_length_exceeded', 'content_filter')
# Error codes of an account without money, for which a retry is useless.
_QUOTA_CODES = (
    'insufficient_quota',
    'billing_hard_limit_reached',
    'billing_not_active',
    'insufficient_balance',
    '402',
)
# Status codes of failures that may be gone at the next attempt, besides those from 500.
_TRANSIENT = (408, 409, 429)
# Fields in which servers give the reason of an error.
_REASONS = ('message', 'detail', 'error', 'msg')
# Without a Retry-After header, the waits double from the first to the maximum number of seconds.
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 8.0
# Maximum length of a server's message that an error quotes.
_MAX_MESSAGE_CHARACTERS = 500


class TransientError(OSError):
    """A failure that may be gone at the next attempt.

    Attributes:
        kind: Short name of the failure, which counts of errors show.
    """

    def __init__(self, kind: str, message: str, wait_s: float | None = None):
        """Create the failure.

        Args:
            kind: Short name of the failure.
            message: Message for the user, if no further attempt is made.
            wait_s: Seconds after which the server asks for the next attempt; None if it does not.
        """
        super().__init__(message)
        self.kind = kind
        self._wait_s = wait_s

    def wait_s(self, attempt: int) -> float:
        """Return the seconds to wait before the next attempt.

        If the server does not ask for a time, it is random, so that requests do not fail together.

        Args:
            attempt: Number of the failed attempt, from 0.
        """
        if self._wait_s is not None:
            return self._wait_s
        return min(_FIRST_WAIT_S * 2**attempt, _MAX_WAIT_S) * random.uniform(0.75, 1.0)


class UnreadableError(TransientError):
    """A response with status 200 that was truncated in transit; it was probably paid for."""


def read_error(
    endpoint: str, status: int, body: Any, key_variable: str, wait_s: float | None = None
) -> Reply:
    """Return the reply 'refused', if an error concerns only the messages; otherwise, raise it.

    Args:
        endpoint: Description of the endpoint, for messages.
        status: HTTP status code, above 399.
        body: Content of the response: a JSON value, or text that is no JSON.
        key_variable: Name of the environment variable with the API key.
        wait_s: Seconds after which the server asks for the next attempt; None if it does not.

    Raises:
        TransientError: The error may be gone at the next attempt.
        UserError: The endpoint rejects the key, the model name or the parameters.
        OSError: The account has no money left.
    """
    if status in (401, 403):
        # The server's message may contain a part of the key, so it is not shown.
        raise UserError(f'{endpoint} rejects the API key in {key_variable}.')
    codes = _codes(body)
    if codes.intersection(_REFUSALS):
        return Reply('', 'refused', 0)
    # Some servers repeat the status in the text.
    reason = error_text(body).removeprefix(f'{status}: ')
    message = f'{endpoint} answers with status {status}: {reason}'
    if codes.intersection(_QUOTA_CODES) or str(status) in _QUOTA_CODES:
        raise OSError(f'{message} (the account has no quota left, so nothing is repeated)')
    if status in _TRANSIENT or status >= 500:
        raise TransientError(f'status {status}', message, wait_s)
    if status == 404 and '/v1' not in endpoint:
        raise UserError(f'{message}: --base_url must be an address that usually ends in /v1.')
    named = [name for name in PARAMETERS if name in message]
    remedy = ' --preset and --parameter-names rename or omit parameters.' if named else ''
    raise UserError(message + remedy)


def read_reply(endpoint: str, body: Any) -> Reply:
    """Read a response with status 200, leniently: servers omit fields or fill them wrongly.

    Args:
        endpoint: Description of the endpoint, for messages.
        body: JSON value of the response.

    Raises:
        TransientError: The response is an error, which some gateways report with status 200.
        OSError: The response is an error, because the account has no money left.
    """
    error = _get_nested(body, 'error')
    if error:
        message = f'{endpoint} answers with an error: {error_text(body)}'
        if _codes(body).intersection(_QUOTA_CODES):
            raise OSError(message)
        raise TransientError('error with status 200', message)
    usage = _usage(_get_nested(body, 'usage'))
    text = _get_nested(body, 'choices', 0, 'message', 'content')
    reason = _get_nested(body, 'choices', 0, 'finish_reason')
    if not isinstance(text, str):
        # Servers that separate the reasoning give no content if a reply ends before its answer.
        reason = 'length' if _reasoning(body) else 'malformed'
        return Reply('', reason, usage.total, usage)
    answer = _without_thoughts(text)
    if answer is None:
        return Reply('', 'length', usage.total, usage)
    # Replace unpaired surrogates, which cannot be encoded.
    clean = answer.encode('utf-8', 'replace').decode().strip()
    reason = reason if isinstance(reason, str) and reason else 'stop'
    return Reply(clean, reason, usage.total, usage)


def is_only_thought(body: Any, reply: Reply) -> bool:
    """Return whether a reply ended while the model was still reasoning.

    Args:
        body: JSON value of the response.
        reply: Reply that was read from it.
    """
    text = _get_nested(body, 'choices', 0, 'message', 'content')
    thought = isinstance(text, str) and _without_thoughts(text) is None
    return not reply.text and (thought or _reasoning(body))


def parse_json_or_text(text: str) -> Any:
    """Return the JSON value that a text contains, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def one_line(text: object) -> str:
    """Return a text on one line, shortened if it is long."""
    line = ' '.join(str(text).split())
    return line if len(line) <= _MAX_MESSAGE_CHARACTERS else f'{line[:_MAX_MESSAGE_CHARACTERS]}…'


def _without_thoughts(text: str) -> str | None:
    """Return a text without the <think> sections at its start; None if it ends in one."""
    rest = text.lstrip()
    while rest.startswith('<think>'):
        _, end, rest = rest.partition('</think>')
        if not end:
            return None
        rest = rest.lstrip()
    # Some chat templates end the prompt with <think>, so that only the end tag is in the reply.
    before, end, after = rest.partition('</think>')
    return after if end and '<think>' not in before else rest


def _reasoning(body: Any) -> bool:
    """Return whether a response contains or counts reasoning outside its content."""
    message = _get_nested(body, 'choices', 0, 'message')
    texts = [_get_nested(message, name) for name in ('reasoning_content', 'reasoning')]
    tokens = _get_nested(body, 'usage', 'completion_tokens_details', 'reasoning_tokens')
    return any(isinstance(text, str) and text for text in texts) or _count(tokens) > 0


def _usage(fields: Any) -> TokenUsage:
    """Return the numbers of tokens in a response; missing numbers are 0."""
    names = ('prompt_tokens', 'completion_tokens', 'total_tokens')
    prompt, completion, total = (_count(_get_nested(fields, name)) for name in names)
    cached = _count(_get_nested(fields, 'prompt_tokens_details', 'cached_tokens'))
    # Some servers count the tokens of the reasoning only in the total.
    return TokenUsage(prompt, max(completion, total - prompt), min(cached, prompt))


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _get_nested(value: Any, *steps: str | int) -> Any:
    """Return the value at a path in nested objects and lists, or None."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _codes(body: Any) -> set[str]:
    """Return the codes and types of an error."""
    error = _get_nested(body, 'error')
    found = [_get_nested(each, name) for each in (error, body) for name in ('code', 'type')]
    return {str(each) for each in found if isinstance(each, str | int)}


def error_text(body: Any) -> str:
    """Return the reason of an error on one line, in whichever form the server gives it."""
    return one_line(_find_reason(body))


def _find_reason(body: Any) -> str:
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return '; '.join(map(_find_reason, body))
    for name in _REASONS:
        inner = _get_nested(body, name)
        if inner:
            # Servers that validate with Pydantic name the field in `loc`.
            place = _get_nested(body, 'loc')
            before = f'{".".join(map(str, place))}: ' if isinstance(place, list) else ''
            return before + _find_reason(inner)
    return json.dumps(body, ensure_ascii=False)

"""What is wrong with a question or an answer of a dialogue, as a short reason; '' = nothing."""

import re
from collections.abc import Sequence

from malora_jax.ultralink.languages import identify
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.prompts import Prompts
from malora_jax.ultralink.text.shingles import similarity

# Of an answer.
SHORT = 'short'
_QUESTION_MARK = re.compile('[?？]')
_NUMBERED = re.compile(r'\s*(?:\(?\d+[.)、．]|[-*•]|[a-zа-я]\))\s', re.IGNORECASE)
# A number, or a capital letter that is not the first of the question.
_NAMES_SOMETHING = re.compile(r'\d|\w\W+[^\W\d_a-zà-öø-ÿа-яё]')


def question_fault(
    reply: Reply,
    language: str,
    prompts: Prompts,
    earlier: Sequence[str],
    *,
    least_characters: int,
    most_characters: int,
    most_similarity: float,
) -> str:
    """Checks a question.

    Args:
        reply: with the question.
        language: code of the language that it must be in.
        prompts: of the language.
        earlier: questions of the same dialogue.
        least_characters: of the question.
        most_characters: of it.
        most_similarity: to any of the earlier ones.
    """
    text = reply.text
    fault = _reply_fault(reply)
    if fault:
        return fault
    if not least_characters <= len(text) <= most_characters:
        return 'length'
    marks = _QUESTION_MARK.findall(text)
    if len(marks) != 1 or text[-1] not in '?？' or '\n' in text or _NUMBERED.match(text):
        return 'not one question'
    if identify(text) != language:
        return 'language'
    if prompts.cites.search(text):
        return 'speaks of the text'
    if not _stands_alone(text, prompts):
        return 'not self-contained'
    if any(similarity(text, other) > most_similarity for other in earlier):
        return 'asked before'
    return ''


def answer_fault(reply: Reply, language: str, prompts: Prompts, *, least_characters: int) -> str:
    """Checks an answer.

    Args:
        reply: with the answer.
        language: code of the language that it must be in.
        prompts: of the language.
        least_characters: of the answer.
    """
    fault = _reply_fault(reply)
    if fault:
        return fault
    if len(reply.text) < least_characters:
        return SHORT
    if identify(reply.text) != language:
        return 'language'
    return 'speaks of the text' if prompts.cites.search(reply.text) else ''


def _reply_fault(reply: Reply) -> str:
    if reply.finish_reason == 'length':
        return 'truncated'
    return '' if reply.finish_reason == 'stop' else reply.finish_reason


def _stands_alone(text: str, prompts: Prompts) -> bool:
    if prompts.refers.search(text):
        return False
    if prompts.pronouns is None or _NAMES_SOMETHING.search(text):
        return True
    return not prompts.pronouns.search(text)

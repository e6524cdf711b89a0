"""Checks of the questions and answers of a dialogue: each returns the fault, or '' if valid."""

import re
from collections.abc import Sequence

from malora_jax.ultralink.languages import identify
from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.prompts import Prompts
from malora_jax.ultralink.text.shingles import similarity

# Fault of an answer that is too short, which ends a dialogue without another attempt.
SHORT = 'short'
_QUESTION_MARK = re.compile('[?？]')
_NUMBERED = re.compile(r'\s*(?:\(?\d+[.)、．]|[-*•]|[a-zа-я]\))\s', re.IGNORECASE)
# A digit, or a capital letter at the start of a later word of the question.
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
    """Return why a question is rejected; '' for a valid question.

    Args:
        reply: Model reply with the question.
        language: Code of the required language.
        prompts: Prompts of that language, with the patterns of forbidden phrases.
        earlier: Earlier questions of the same dialogue.
        least_characters: Minimum length of the question in characters.
        most_characters: Maximum length of the question in characters.
        most_similarity: Maximum Jaccard similarity to an earlier question, from 0 to 1.
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
    """Return why an answer is rejected; '' for a valid answer.

    Args:
        reply: Model reply with the answer.
        language: Code of the required language.
        prompts: Prompts of that language, with the patterns of forbidden phrases.
        least_characters: Minimum length of the answer in characters.
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

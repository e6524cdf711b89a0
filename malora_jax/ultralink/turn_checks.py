"""Checks of a question or an answer of a dialogue: each returns the kind of fault; '' = none."""

import re
from collections.abc import Sequence

from malora_jax.ultralink.llm.chat import Reply
from malora_jax.ultralink.prompts import DialoguePrompts
from malora_jax.ultralink.text.language_identification import describe_language, identify_language
from malora_jax.ultralink.text.shingles import similarity

# Fault of an answer that is too short, which ends a dialogue without another attempt.
SHORT = 'short'
_NUMBERED = re.compile(r'\s*(?:\(?\d+[.)、．]|[-*•]|[a-zа-я]\))\s', re.IGNORECASE)
# Evidence of a name or a date: a digit, or a capital letter that does not start the question.
_NAMES_SOMETHING = re.compile(r'\d|\w\W+[^\W\d_a-zà-öø-ÿа-яё]')


def question_fault(
    reply: Reply,
    language: str,
    prompts: DialoguePrompts,
    earlier_questions: Sequence[str],
    *,
    min_characters: int,
    max_characters: int,
    max_similarity: float,
) -> str:
    """Return why a question is rejected; '' for a valid question.

    Args:
        reply: Model reply with the question.
        language: Code of the required language.
        prompts: Prompts of that language, with the patterns of forbidden phrases.
        earlier_questions: Earlier questions of the same dialogue.
        min_characters: Minimum length of the question in characters.
        max_characters: Maximum length of the question in characters.
        max_similarity: Maximum Jaccard similarity to an earlier question, from 0 to 1.
    """
    text = reply.text
    fault = _reply_fault(reply)
    if fault:
        return fault
    if not min_characters <= len(text) <= max_characters:
        return 'length'
    is_one = _count_marks(text, prompts) == 1 and text[-1] in prompts.question_marks
    if not is_one or '\n' in text or _NUMBERED.match(text):
        return 'not one question'
    if identify_language(text) != language:
        return 'language'
    if prompts.citation_pattern.search(text):
        return 'speaks of the text'
    if not _stands_alone(text, prompts):
        return 'not self-contained'
    if any(similarity(text, other) > max_similarity for other in earlier_questions):
        return 'asked before'
    return ''


def answer_fault(
    reply: Reply, language: str, prompts: DialoguePrompts, *, min_characters: int
) -> str:
    """Return why an answer is rejected; '' for a valid answer.

    Args:
        reply: Model reply with the answer.
        language: Code of the required language.
        prompts: Prompts of that language, with the patterns of forbidden phrases.
        min_characters: Minimum length of the answer in characters.
    """
    fault = _reply_fault(reply)
    if fault:
        return fault
    if len(reply.text) < min_characters:
        return SHORT
    if identify_language(reply.text) != language:
        return 'language'
    return 'speaks of the text' if prompts.citation_pattern.search(reply.text) else ''


def describe_fault(
    fault: str,
    text: str,
    language: str,
    prompts: DialoguePrompts,
    earlier_questions: Sequence[str] = (),
) -> str:
    """Return the details of a fault in a question or an answer; '' if there are none.

    Args:
        fault: Result of `question_fault` or `answer_fault` for the text.
        text: Question or answer.
        language: Code of the required language.
        prompts: Prompts of that language, with the patterns of forbidden phrases.
        earlier_questions: Earlier questions of the same dialogue.
    """
    if fault in ('length', SHORT):
        return f'{len(text)} characters'
    if fault == 'language':
        return f'{describe_language(text)}, not {language}'
    if fault == 'not one question':
        return f'{_count_marks(text, prompts)} question marks'
    if fault == 'asked before':
        nearest = max(earlier_questions, key=lambda earlier: similarity(text, earlier))
        return f'{similarity(text, nearest):.2f} similar to {nearest!r}'
    patterns = {
        'speaks of the text': (prompts.citation_pattern,),
        'not self-contained': (prompts.reference_pattern, prompts.pronoun_pattern),
    }
    matches = (each.search(text) for each in patterns.get(fault, ()) if each)
    return next((repr(match[0]) for match in matches if match), '')


def _reply_fault(reply: Reply) -> str:
    """Return the fault of an incomplete reply, by its finish reason; '' for a complete reply."""
    if reply.finish_reason == 'length':
        return 'truncated'
    return '' if reply.finish_reason == 'stop' else reply.finish_reason


def _count_marks(text: str, prompts: DialoguePrompts) -> int:
    return sum(map(prompts.question_marks.count, text))


def _stands_alone(text: str, prompts: DialoguePrompts) -> bool:
    """Return whether a question can be understood without the document and the earlier turns."""
    if prompts.reference_pattern.search(text):
        return False
    if prompts.pronoun_pattern is None or _NAMES_SOMETHING.search(text):
        return True
    return not prompts.pronoun_pattern.search(text)

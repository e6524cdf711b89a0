"""Parts that the prompt forms share: the example of an item, and texts within prompts."""

from collections.abc import Sequence
from typing import Any

from malora_jax.data.datasets import mgsm
from malora_jax.data.datasets.item import Item
from malora_jax.data.examples import Example

_ENGLISH = mgsm.Headings('Question:', 'Answer:')
_HEADINGS = {f'mgsm_{language}': words for language, words in mgsm.HEADINGS.items()}
# Instructions in front of the item's question.
_INSTRUCTIONS = {
    'e2e_nlg': 'Describe the restaurant with these attributes: ',
    'phrasebank': 'What is the sentiment of this financial news, negative, neutral or positive? ',
}


def headings(name: str) -> mgsm.Headings:
    """Return the headings of question and answer in the language of a dataset."""
    return _HEADINGS.get(name, _ENGLISH)


def question_text(name: str, item: Item) -> str:
    """Return the question with its instruction, its question mark and the options' opening."""
    mark = '?' if name == 'boolq' and not item.question.endswith('?') else ''
    question = f'{_INSTRUCTIONS.get(name, "")}{item.question}{mark}'
    return f'{question} {item.opening}' if item.opening else question


def program_example(item: Item) -> Example:
    """Return the example of a programming item, which is the same in all forms.

    The prompt is the beginning of a program. The answer is the rest, which starts on a new line.
    """
    answer = f'\n{item.answers[0]}'
    metadata = {'answers': (answer,), 'test': item.test, 'entry_point': item.entry_point}
    return Example(item.question.strip(), answer, metadata)


def item_example(name: str, item: Item, prompt: str, continuations: Sequence[str]) -> Example:
    """Return the example of an item that is not a program.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.
        prompt: Whole prompt.
        continuations: Continuation for each option, or else each right continuation.
    """
    metadata: dict[str, Any] = {'answers': tuple(continuations)}
    if item.options:
        metadata = {'options': tuple(continuations), 'label': item.label}
    if name in _HEADINGS:
        metadata['language'] = name.removeprefix('mgsm_')
    return Example(prompt, continuations[max(item.label, 0)], metadata)


def move_spaces(prompt: str, continuations: Sequence[str]) -> tuple[str, list[str]]:
    """Move the white space at the end of a prompt to the start of each continuation.

    The text stays the same. A tokenizer may join the space and the word after it, so they must not
    be encoded separately.
    """
    stripped = prompt.rstrip()
    return stripped, [f'{prompt[len(stripped) :]}{text}' for text in continuations]

r"""Prompt forms: how an item is asked, and what the model should continue with.

They are UltraEval's (OpenBMB/UltraEval, `datasets/*/transform_*.py`); the paper does not say which
it used. 'completion' is the form that is scored by log-probability (ppl_v0), where the text of an
option follows 'Answer:', and 'sectioned' the one that is generated (gen_v1), where its letter does.
UltraEval's texts, with {} for those of a row:

- completion: 'Question: {}\nAnswer: '. In BoolQ, the passage and '\n' in front, a question mark
  after the question, and the options Yes and No; in MedMCQA, '\nOptions: A. {}\nB. {}\nC. {}\nD.
  {}' after the question; in PIQA, a space before the line break, which is left out here.
- sectioned: 'Question:\n{}\nRequirement:\nChoose and respond with the letter of the correct answer,
  including the parentheses.\nOptions:\n(A) {}\n(B) {}\nAnswer:\n', then '(A)'. In BoolQ,
  'Context:\n{}\n' in front.
- GSM8K: 'Question: {}\nAnswer: ' or 'Question:\n{}\nAnswer:\n', then the dataset's answer as it is.
  The second adds a question mark after that of the question, which is left out here.
- HumanEval, in both: the prompt without the white space around it.

A space at the end of a prompt begins the continuation here, which makes the same text.

Chosen here: ARC, whose files could not be read, and OpenBookQA, where UltraEval shows a fact that
the config 'main' lacks, are asked like PIQA. UltraEval has neither instructions, E2E nor
PhraseBank: they are asked like GSM8K and PIQA, the latter two with a sentence that says what to do.
MGSM is asked with the words of its worked examples in each language.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from malora_jax.data.benchmarks import mgsm
from malora_jax.data.benchmarks.item import Item
from malora_jax.data.examples import Example
from malora_jax.errors import unknown_name

_REQUIREMENT = (
    'Choose and respond with the letter of the correct answer, including the parentheses.'
)
_LETTERS = 'ABCDE'
_ENGLISH = mgsm.Words('Question:', 'Answer:')
_WORDS = {f'mgsm_{language}': words for language, words in mgsm.WORDS.items()}
# What precedes the item's question.
_ASKED = {
    'e2e_nlg': 'Describe the restaurant with these attributes: ',
    'phrasebank': 'What is the sentiment of this financial news, negative, neutral or positive? ',
}


def completion(name: str, item: Item) -> Example:
    """A question line, then 'Answer:', which the text of the answer continues.

    Args:
        name: of the dataset.
        item: of the dataset.

    Returns:
        The example, as `FORMS` has it.
    """
    if item.test:
        return _program(item)
    heading, ending = _words(name)
    passage = f'{item.passage}\n' if item.passage else ''
    question = f'{heading}{_space_after(heading)}{_question(name, item)}\n'
    options = _listed(item.options) if name == 'medmcqa' else ''
    lead = _space_after(ending)
    continuations = [f'{lead}{text}' for text in item.options or item.answers]
    return _example(name, item, f'{passage}{question}{options}{ending}', continuations)


def sectioned(name: str, item: Item) -> Example:
    """Headed sections, of which the last is the answer: the letter of an option, or a text.

    Args:
        name: of the dataset.
        item: of the dataset.

    Returns:
        The example, as `FORMS` has it.
    """
    if item.test:
        return _program(item)
    heading, ending = _words(name)
    sections = [('Context:', item.passage)] if item.passage else []
    sections.append((heading, _question(name, item)))
    continuations = list(item.answers)
    if item.options:
        continuations = [f'({letter})' for letter in _LETTERS[: len(item.options)]]
        pairs = zip(continuations, item.options, strict=True)
        options = '\n'.join(f'{letter} {option}' for letter, option in pairs)
        sections += [('Requirement:', _REQUIREMENT), ('Options:', options)]
    prompt = ''.join(f'{heading}\n{text}\n' for heading, text in sections)
    return _example(name, item, f'{prompt}{ending}\n', continuations)


Form = Callable[[str, Item], Example]

# An example's question is the whole prompt, and its answer the text to continue with. Its metadata
# holds, of items with options, `options`, the continuation for each, and `label`, the index of the
# right one; else `answers`, all right continuations; of programs also `test` and `entry_point`; of
# MGSM also `language`.
FORMS: Mapping[str, Form] = {'completion': completion, 'sectioned': sectioned}


def get_form(name: str) -> Form:
    """The form of that name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMS:
        raise unknown_name('form', name, FORMS)
    return FORMS[name]


def with_shots(example: Example, shots: Sequence[Example], separator: str = '\n\n') -> Example:
    """An example with solved examples of the same form in front of its question.

    UltraEval draws them from the rows that it scores; draw them from the training split instead.

    Args:
        example: to be asked.
        shots: to be shown with their answers.
        separator: after each of them; UltraEval's is an empty line.
    """
    shown = ''.join(f'{shot.question}{shot.answer}{separator}' for shot in shots)
    return replace(example, question=shown + example.question)


def _words(name: str) -> mgsm.Words:
    return _WORDS.get(name, _ENGLISH)


def _question(name: str, item: Item) -> str:
    mark = '?' if name == 'boolq' and not item.question.endswith('?') else ''
    return f'{_ASKED.get(name, "")}{item.question}{mark}'


def _listed(options: Sequence[str]) -> str:
    lines = (f'{_LETTERS[index]}. {text}\n' for index, text in enumerate(options))
    return f'Options: {"".join(lines)}'


def _program(item: Item) -> Example:
    """The beginning of a program, which the rest of its function continues on the next line."""
    answer = f'\n{item.answers[0]}'
    metadata = {'answers': (answer,), 'test': item.test, 'entry_point': item.entry_point}
    return Example(item.question.strip(), answer, metadata)


def _example(name: str, item: Item, prompt: str, continuations: Sequence[str]) -> Example:
    metadata: dict[str, Any] = {'answers': tuple(continuations)}
    if item.options:
        metadata = {'options': tuple(continuations), 'label': item.label}
    if name in _WORDS:
        metadata['language'] = name.removeprefix('mgsm_')
    return Example(prompt, continuations[max(item.label, 0)], metadata)


def _space_after(heading: str) -> str:
    """The wide colon of Japanese and Chinese has its space within."""
    return '' if heading.endswith('：') else ' '

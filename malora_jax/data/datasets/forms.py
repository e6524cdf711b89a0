r"""Prompt forms: templates that turn an item into a prompt and its continuation.

The forms are those of UltraEval, OpenBMB's evaluation toolkit (files `datasets/*/transform_*.py` of
OpenBMB/UltraEval); the paper does not say which form it used. 'completion' is UltraEval's form for
scoring by log-probability (ppl_v0), where the text of an option follows 'Answer:'. 'sectioned' is
its form for generation (gen_v1), where the letter of an option follows. UltraEval's texts, with {}
for the fields of a row:

- completion: 'Question: {}\nAnswer: '. BoolQ has the passage and '\n' in front, a question mark
  after the question, and the options Yes and No. MedMCQA has '\nOptions: A. {}\nB. {}\nC. {}\nD.
  {}' after the question. PIQA has a space before the line break, which is omitted here.
- sectioned: 'Question:\n{}\nRequirement:\nChoose and respond with the letter of the correct answer,
  including the parentheses.\nOptions:\n(A) {}\n(B) {}\nAnswer:\n', then '(A)'. BoolQ has
  'Context:\n{}\n' in front.
- GSM8K: 'Question: {}\nAnswer: ' or 'Question:\n{}\nAnswer:\n', then the dataset's answer
  unchanged. The second form adds another question mark to the question, which is omitted here.
- HumanEval, in both forms: the prompt without the white space around it.

A space at the end of a prompt is moved to the start of the continuation here, which gives the same
text.

The forms of these datasets are our own choice:

- ARC is asked like PIQA, because UltraEval's files for ARC could not be read.
- OpenBookQA is asked like PIQA, because UltraEval shows a fact that the config 'main' lacks.
- Instruction datasets and E2E, which UltraEval does not have, are asked like GSM8K. E2E also gets
  an instruction.
- PhraseBank, which UltraEval does not have, is asked like PIQA, with an instruction.
- MGSM is asked with the headings of its worked examples in each language.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from malora_jax.data.datasets import mgsm
from malora_jax.data.datasets.item import Item
from malora_jax.data.examples import Example
from malora_jax.errors import unknown_name

_REQUIREMENT = (
    'Choose and respond with the letter of the correct answer, including the parentheses.'
)
_LETTERS = 'ABCDE'
_ENGLISH = mgsm.Headings('Question:', 'Answer:')
_HEADINGS = {f'mgsm_{language}': words for language, words in mgsm.HEADINGS.items()}
# Instructions in front of the item's question.
_INSTRUCTIONS = {
    'e2e_nlg': 'Describe the restaurant with these attributes: ',
    'phrasebank': 'What is the sentiment of this financial news, negative, neutral or positive? ',
}


def completion(name: str, item: Item) -> Example:
    """Return an example in completion form: a question line and 'Answer:', then the answer's text.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    if item.test:
        return _program(item)
    heading, ending = _headings(name)
    passage = f'{item.passage}\n' if item.passage else ''
    question = f'{heading}{_space_after(heading)}{_question(name, item)}\n'
    options = _listed(item.options) if name == 'medmcqa' else ''
    lead = _space_after(ending)
    continuations = [f'{lead}{text}' for text in item.options or item.answers]
    return _example(name, item, f'{passage}{question}{options}{ending}', continuations)


def sectioned(name: str, item: Item) -> Example:
    """Return an example in sectioned form, in which each part of the prompt has a heading line.

    The answer is the letter of the right option, such as '(A)', or a text if there are no options.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    if item.test:
        return _program(item)
    heading, ending = _headings(name)
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


PromptForm = Callable[[str, Item], Example]

# A prompt form maps a dataset name and an item to an example. The example's question is the whole
# prompt, and its answer is the continuation. For items with options, the metadata has `options`
# (the continuation for each option) and `label` (the index of the right option). Otherwise the
# metadata has `answers`, all right continuations. Programs also have `test` and `entry_point`, and
# MGSM has `language`.
FORMS: Mapping[str, PromptForm] = {'completion': completion, 'sectioned': sectioned}


def get_form(name: str) -> PromptForm:
    """Return the prompt form with that name.

    For example::

        example = get_form('completion')('gsm8k', item)

    Raises:
        UserError: There is no such form.
    """
    if name not in FORMS:
        raise unknown_name('form', name, FORMS)
    return FORMS[name]


def with_shots(example: Example, shots: Sequence[Example], separator: str = '\n\n') -> Example:
    """Return a few-shot example: solved examples of the same form in front of the question.

    UltraEval draws the shots from the rows that it scores; use the training split instead.

    For example::

        example = with_shots(question, shots)

    Args:
        example: Example to ask.
        shots: Solved examples that are shown with their answers.
        separator: Text after each shot; by default an empty line, as in UltraEval.
    """
    solved = ''.join(f'{shot.question}{shot.answer}{separator}' for shot in shots)
    return replace(example, question=solved + example.question)


def _headings(name: str) -> mgsm.Headings:
    return _HEADINGS.get(name, _ENGLISH)


def _question(name: str, item: Item) -> str:
    mark = '?' if name == 'boolq' and not item.question.endswith('?') else ''
    return f'{_INSTRUCTIONS.get(name, "")}{item.question}{mark}'


def _listed(options: Sequence[str]) -> str:
    lines = (f'{_LETTERS[index]}. {text}\n' for index, text in enumerate(options))
    return f'Options: {"".join(lines)}'


def _program(item: Item) -> Example:
    """Return the example of a programming item, which is the same in both forms.

    The prompt is the beginning of a program. The answer is the rest, which starts on a new line.
    """
    answer = f'\n{item.answers[0]}'
    metadata = {'answers': (answer,), 'test': item.test, 'entry_point': item.entry_point}
    return Example(item.question.strip(), answer, metadata)


def _example(name: str, item: Item, prompt: str, continuations: Sequence[str]) -> Example:
    metadata: dict[str, Any] = {'answers': tuple(continuations)}
    if item.options:
        metadata = {'options': tuple(continuations), 'label': item.label}
    if name in _HEADINGS:
        metadata['language'] = name.removeprefix('mgsm_')
    return Example(prompt, continuations[max(item.label, 0)], metadata)


def _space_after(heading: str) -> str:
    """Return the space after a heading; none after the wide colon of Japanese and Chinese."""
    return '' if heading.endswith('：') else ' '

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
text. White space around a text of a row is removed in these two forms.

Two other forms are in modules of their own: 'llm_adapters', in which papers train and score on
commonsense_170k and math_14k, and 'lm_eval', in which scores equal lm-evaluation-harness's.

The forms of these datasets are our own choice:

- ARC is asked like PIQA, because UltraEval's files for ARC could not be read.
- OpenBookQA is asked like PIQA, because UltraEval shows a fact that the config 'main' lacks.
- Instruction datasets and E2E, which UltraEval does not have, are asked like GSM8K. E2E also gets
  an instruction.
- PhraseBank, which UltraEval does not have, is asked like PIQA, with an instruction.
- MGSM is asked with the headings of its worked examples in each language.
- Datasets of `benchmarks.py` are asked like PIQA or GSM8K, with their passage in front: the
  activity of HellaSwag, the subject of MMLU, the description of a BBH task, or the input of
  CodeAlpaca. The endings of HellaSwag complete the question, which ends in `ctx_b`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from malora_jax.data.datasets import lm_eval_form
from malora_jax.data.datasets.form_parts import (
    headings,
    item_example,
    program_example,
    question_text,
)
from malora_jax.data.datasets.item import Item
from malora_jax.data.datasets.llm_adapters import llm_adapters
from malora_jax.data.examples import Example
from malora_jax.errors import unknown_name

_REQUIREMENT = (
    'Choose and respond with the letter of the correct answer, including the parentheses.'
)
_LETTERS = 'ABCDE'


def completion(name: str, item: Item) -> Example:
    """Return an example in completion form: a question line and 'Answer:', then the answer's text.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    if item.test:
        return program_example(item)
    item = _stripped(item)
    heading, ending = headings(name)
    passage = f'{item.passage}\n' if item.passage else ''
    question = f'{heading}{_space_after(heading)}{question_text(name, item)}\n'
    options = _listed(item.options) if name == 'medmcqa' else ''
    lead = _space_after(ending)
    continuations = [f'{lead}{text}' for text in item.options or item.answers]
    return item_example(name, item, f'{passage}{question}{options}{ending}', continuations)


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
        return program_example(item)
    item = _stripped(item)
    heading, ending = headings(name)
    sections = [('Context:', item.passage)] if item.passage else []
    sections.append((heading, question_text(name, item)))
    continuations = list(item.answers)
    if item.options:
        continuations = [f'({letter})' for letter in _LETTERS[: len(item.options)]]
        pairs = zip(continuations, item.options, strict=True)
        options = '\n'.join(f'{letter} {option}' for letter, option in pairs)
        sections += [('Requirement:', _REQUIREMENT), ('Options:', options)]
    prompt = ''.join(f'{heading}\n{text}\n' for heading, text in sections)
    return item_example(name, item, f'{prompt}{ending}\n', continuations)


def lm_eval(name: str, item: Item) -> Example:
    """Return an example in the form of lm-evaluation-harness; see the module `lm_eval_form`.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    return lm_eval_form.lm_eval(name, item) or completion(name, item)


PromptForm = Callable[[str, Item], Example]

# A prompt form maps a dataset name and an item to an example. The example's question is the whole
# prompt, and its answer is the continuation. For items with options, the metadata has `options`
# (the continuation for each option) and `label` (the index of the right option). Otherwise the
# metadata has `answers`, all right continuations. Programs also have `test` and `entry_point`, and
# MGSM has `language`. If the prompts of the options differ, the metadata has them as `prompts`.
FORMS: Mapping[str, PromptForm] = {
    'completion': completion,
    'sectioned': sectioned,
    'llm_adapters': llm_adapters,
    'lm_eval': lm_eval,
}


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
    metadata = dict(example.metadata)
    if 'prompts' in metadata:
        metadata['prompts'] = tuple(solved + prompt for prompt in metadata['prompts'])
    return replace(example, question=solved + example.question, metadata=metadata)


def _stripped(item: Item) -> Item:
    """Return the item without the white space around its texts."""
    return replace(
        item,
        question=item.question.strip(),
        options=tuple(option.strip() for option in item.options),
        answers=tuple(answer.strip() for answer in item.answers),
    )


def _listed(options: Sequence[str]) -> str:
    lines = (f'{_LETTERS[index]}. {text}\n' for index, text in enumerate(options))
    return f'Options: {"".join(lines)}'


def _space_after(heading: str) -> str:
    """Return the space after a heading; none after the wide colon of Japanese and Chinese."""
    return '' if heading.endswith('：') else ' '

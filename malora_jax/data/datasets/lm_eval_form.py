r"""Prompt form of lm-evaluation-harness, EleutherAI's evaluation tool (version 0.4.13).

With this form, the scores of the datasets below are those of the harness, on the same rows. A space
that the harness puts between prompt and option belongs to the option.

- ARC and PIQA (`arc_challenge`, `arc_easy`, `piqa`): 'Question: {question}\nAnswer:'.
- Social IQa (`social_iqa`): 'Q: {context} {question}\nA:'.
- HellaSwag (`hellaswag`): '{activity}: {ctx_a} {ctx_b}' with a capital letter in `ctx_b`. Marks in
  brackets, which are left over from WikiHow, are removed from the context and from the endings. The
  usual score is `accuracy_normalized`, `acc_norm` in the harness. Its lengths include every space
  of an option but the first.
- WinoGrande (`winogrande`): the sentence up to the blank, which is filled with an option, is the
  prompt; the rest of the sentence, the same for both options, is the continuation. So the prompt,
  and not the continuation, differs between the options.
- OpenBookQA (`openbookqa`): the question alone.
- BoolQ (`boolq`): '{passage}\nQuestion: {question}?\nAnswer:', with the options yes and no.
- MMLU (`mmlu`): the subject, the question, the lettered options and 'Answer:'. The options are the
  letters.
- BBH (`bbh_zeroshot`): the description of the task, then 'Q: {input}\nA:'.

All other datasets have the form 'completion' here, too. The parsers of ARC, OpenBookQA and BoolQ
remove white space around a text, which the harness keeps; no row of ARC's and OpenBookQA's training
and validation splits has any.
"""

import dataclasses
import re
from collections.abc import Sequence

from malora_jax.data.datasets.form_parts import item_example, move_spaces
from malora_jax.data.datasets.item import Item
from malora_jax.data.examples import Example

_LETTERS = 'ABCD'


def lm_eval(name: str, item: Item) -> Example | None:
    """Return an example in the form of the harness; None = it is that of the form 'completion'.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    if name in ('winogrande', 'winogrande_six'):
        return _partial(name, item)
    options: Sequence[str] = item.options
    if name in ('arc_challenge', 'arc_easy', 'piqa'):
        prompt = f'Question: {item.question}\nAnswer:'
    elif name == 'siqa':
        prompt = f'Q: {item.question}\nA:'
    elif name == 'hellaswag':
        opening = item.opening.capitalize()
        prompt = _without_marks(f'{item.passage}: {item.question} {opening}')
        options = [_without_marks(option) for option in item.options]
    elif name == 'openbookqa':
        prompt = item.question
    elif name == 'boolq':
        prompt = f'{item.passage}\nQuestion: {item.question}?\nAnswer:'
        options = ['yes', 'no']
    elif name == 'mmlu':
        pairs = zip(_LETTERS, item.options, strict=True)
        lines = ''.join(f'{letter}. {option}\n' for letter, option in pairs)
        prompt, options = f'{_introduction(item)}{item.question}\n{lines}Answer:', _LETTERS
    elif name.startswith('bbh_'):
        prompt, options = f'{_introduction(item)}Q: {item.question}\nA:', item.answers
    else:
        return None
    return item_example(name, item, *move_spaces(prompt, [f' {option}' for option in options]))


def _introduction(item: Item) -> str:
    return f'{item.passage}\n\n' if item.passage else ''


def _partial(name: str, item: Item) -> Example:
    """Return an example whose prompts differ between the options, and whose continuation does not.

    The metadata has `prompts`, the prompt for each option.
    """
    before, _, after = item.question.partition('_')
    pairs = [move_spaces(f'{before}{option}', [f' {after.strip()}']) for option in item.options]
    prompts = tuple(prompt for prompt, _ in pairs)
    example = item_example(name, item, prompts[item.label], [text for _, [text] in pairs])
    return dataclasses.replace(example, metadata={**example.metadata, 'prompts': prompts})


def _without_marks(text: str) -> str:
    """Remove the marks in brackets, such as '[step]'; a period takes the place of ' [title]'."""
    text = re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. '))
    return text.replace('  ', ' ')

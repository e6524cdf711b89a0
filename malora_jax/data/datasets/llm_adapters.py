r"""Prompt form of LLM-Adapters, which papers on commonsense_170k and math_14k train and score with.

LLM-Adapters (Hu et al. 2023; github.com/AGI-Edgerunners/LLM-Adapters at commit 8166572) has an
instruction for each dataset, in the template of its files `commonsense_evaluate.py` and
`evaluate.py`. The template has 16 spaces in front of each line, which are kept. Its training file
`finetune.py` has the same template with a few more spaces, in lines that are otherwise empty; here,
training and scoring have one text.

The instructions, with {} for the fields of a row, and the answer 'the correct answer is …':

- ARC, OpenBookQA and Social IQa: 'Please choose the correct answer to the question: {}\n\nAnswer1:
  {} Answer2: {} Answer3: {}\n\nAnswer format: answer1/answer2/answer3'.
- PIQA, HellaSwag and WinoGrande: likewise, with solutions, endings and options.
- BoolQ: 'Please answer the following question with true or false, question: {}?\n\nAnswer format:
  true/false', without the passage.
- AQuA: '{} Answer Choices: (A) {} (B) {} …'; its answer here is 'The answer is (A).', because the
  published solutions are from a language model.
- Other mathematical problems: the question alone.

Datasets that LLM-Adapters does not have are asked like ARC if they have options, and else with the
question alone. The inputs of CodeAlpaca have a section of their own, as in the template. HumanEval
has its usual prompt, the beginning of a program.
"""

from typing import NamedTuple

from malora_jax.data.datasets.form_parts import item_example, program_example, question_text
from malora_jax.data.datasets.item import Item
from malora_jax.data.examples import Example

_INDENT = 16 * ' '
_ALONE = (
    'Below is an instruction that describes a task. Write a response that appropriately completes '
    'the request. '
)
_WITH_INPUT = (
    'Below is an instruction that describes a task, paired with an input that provides further '
    'context. Write a response that appropriately completes the request.'
)


class _Style(NamedTuple):
    """Texts of a multiple-choice instruction.

    Attributes:
        request: Text in front of the question.
        word: Name of an option, such as 'answer' for answer1, answer2 and so on.
        between: Text between two options.
        after: Text after the last option.
    """

    request: str
    word: str
    between: str = ' '
    after: str = '\n\n'


_QUESTION = _Style('Please choose the correct answer to the question: ', 'answer')
_BLANK = _Style(
    'Please choose the correct answer to fill in the blank to complete the given sentence: ',
    'option',
    after=' ',
)
_STYLES = {
    'piqa': _Style('Please choose the correct solution to the question: ', 'solution', '\n\n'),
    'hellaswag': _Style(
        'Please choose the correct ending to complete the given sentence: ', 'ending'
    ),
    'winogrande': _BLANK,
    'winogrande_six': _BLANK,
}


def llm_adapters(name: str, item: Item) -> Example:
    """Return an example in the form of LLM-Adapters: an instruction, and 'the correct answer is …'.

    The last space of the prompt belongs to the continuation.

    Args:
        name: Name of the dataset.
        item: Item of the dataset.

    Returns:
        An example with the fields that are described at `FORMS`.
    """
    if item.test:
        return program_example(item)
    instruction, answers = _instruction(name, item)
    sections = [('Instruction', instruction)]
    if name == 'code_alpaca' and item.passage:
        sections.append(('Input', item.passage))
    lines = ''.join(f'{_INDENT}### {title}:\n{_INDENT}{text}\n\n' for title, text in sections)
    introduction = _ALONE if len(sections) == 1 else _WITH_INPUT
    prompt = f'{introduction}\n\n{lines}{_INDENT}### Response:\n{_INDENT[1:]}'
    return item_example(name, item, prompt, [f' {answer}' for answer in answers])


def _instruction(name: str, item: Item) -> tuple[str, list[str]]:
    """Return the instruction, and the answer for each option or else each right answer."""
    question = question_text(name, item)
    if name == 'hellaswag':
        question = f'{item.passage}: {question}'
    elif item.passage and name not in ('boolq', 'code_alpaca'):
        question = f'{item.passage}\n\n{question}'
    if name == 'boolq':
        text = f'Please answer the following question with true or false, question: {question}'
        return f'{text}\n\nAnswer format: true/false', _correct(['true', 'false'])
    if name == 'aqua':
        letters = 'ABCDE'[: len(item.options)]
        pairs = zip(letters, item.options, strict=True)
        options = ' '.join(f'({letter}) {option}' for letter, option in pairs)
        return (
            f'{question} Answer Choices: {options}',
            [f'The answer is ({letter}).' for letter in letters],
        )
    if not item.options:
        return question, list(item.answers)
    style = _STYLES.get(name, _QUESTION)
    numbered = list(enumerate(item.options, start=1))
    options = style.between.join(f'{style.word.title()}{n}: {option}' for n, option in numbered)
    words = [f'{style.word}{n}' for n, _ in numbered]
    return (
        f'{style.request}{question}\n\n{options}{style.after}Answer format: {"/".join(words)}',
        _correct(words),
    )


def _correct(words: list[str]) -> list[str]:
    return [f'the correct answer is {word}' for word in words]

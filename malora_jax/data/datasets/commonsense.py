"""Parsers of Social IQa, HellaSwag and WinoGrande, three tasks of commonsense_170k.

The texts are kept unchanged, because the published prompts contain them with their white space.
"""

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item, choice_item
from malora_jax.data.file_rows import Row

_NO_LABELS = ' (the test split has no labels)'


def parse_siqa(row: Row) -> Item:
    """Parse `context`, `question`, the options `answerA` to `answerC`, and `label`, from 1 to 3.

    Five rows of the validation split have the right option twice. They are scored nevertheless, as
    in all published evaluations.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    options = [fields.raw_text(row, f'answer{letter}') for letter in 'ABC']
    question = f'{fields.raw_text(row, "context")} {fields.raw_text(row, "question")}'
    label = _label_from_1(row, 'label', len(options))
    return choice_item(row.location, question, options, label, is_distinct=False)


def parse_hellaswag(row: Row) -> Item:
    """Parse `activity_label`, `ctx_a`, `ctx_b`, `endings` and `label`, the index of an ending.

    Each ending completes the sentence that begins with `ctx_b`. If `ctx_b` is empty, the ending is
    a sentence of its own.

    Returns:
        An item whose passage is the activity, whose question is `ctx_a`, and whose opening is
        `ctx_b`.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    endings = fields.raw_texts(row, 'endings')
    label = fields.index(row, 'label', len(endings), _NO_LABELS)
    return Item(
        fields.raw_text(row, 'ctx_a'),
        fields.raw_text(row, 'activity_label'),
        tuple(endings),
        label,
        opening=fields.optional_text(row, 'ctx_b'),
    )


def parse_winogrande(row: Row) -> Item:
    """Parse `sentence` with a blank `_`, `option1`, `option2`, and `answer`, which is 1 or 2.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    sentence = fields.raw_text(row, 'sentence')
    if '_' not in sentence:
        raise BrokenRowError(f"{row.location}: field 'sentence' has no blank '_'.")
    options = [fields.raw_text(row, 'option1'), fields.raw_text(row, 'option2')]
    label = _label_from_1(row, 'answer', len(options))
    return choice_item(row.location, sentence, options, label, is_distinct=False)


def _label_from_1(row: Row, name: str, count: int) -> int:
    """Return the index, from 0, of the option whose number, from 1, is in a field."""
    if row.fields.get(name) == '':
        raise BrokenRowError(f'{row.location}: field {name!r} is empty{_NO_LABELS}.')
    number = fields.whole_number(row, name)
    if not 1 <= number <= count:
        raise BrokenRowError(
            f'{row.location}: field {name!r} is {number}; it must be 1 to {count}.'
        )
    return number - 1

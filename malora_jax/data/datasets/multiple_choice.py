"""Parsers of multiple-choice datasets: MedMCQA, ARC, OpenBookQA, PIQA and BoolQ."""

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item, choice_item
from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError

_MEDMCQA_OPTIONS = ('opa', 'opb', 'opc', 'opd')
# Options in UltraEval's order.
BOOLQ_OPTIONS = ('Yes', 'No')


def parse_medmcqa(row: Row) -> Item:
    """Parse `question`, the options `opa` to `opd`, and `cop`, the index of the right one, from 0.

    Raises:
        BrokenRowError: The row cannot be used.
        UserError: `cop` is 4. The original files number options from 1, but the hub numbers them
            from 0. So all labels of this file would be wrong, and none of its rows may be used.
    """
    options = [fields.text(row, name) for name in _MEDMCQA_OPTIONS]
    if fields.whole_number(row, 'cop') == 4:
        raise UserError(
            f"{row.location}: field 'cop' is 4, so this is an original file, which numbers the "
            'options from 1; use the rows from the Hugging Face hub, which number them from 0.'
        )
    label = fields.index(row, 'cop', len(options), ' (the test split has no labels)')
    return choice_item(row.location, fields.text(row, 'question'), options, label)


def is_clean_medmcqa(row: Row) -> bool:
    """Return whether a MedMCQA row has a single right option and four distinct options.

    UltraEval scores only these rows. Other rows may have an option that combines several others.

    Raises:
        BrokenRowError: `choice_type` is neither 'single' nor 'multi', or a field is not text.
    """
    kind = fields.text(row, 'choice_type')
    if kind not in ('single', 'multi'):
        raise BrokenRowError(
            f"{row.location}: field 'choice_type' is {kind!r}; it must be 'single' or 'multi'."
        )
    options = [fields.text(row, name) for name in _MEDMCQA_OPTIONS]
    return kind == 'single' and len(set(options)) == len(options)


def parse_arc(row: Row) -> Item:
    """Parse `question`, `choices` with `text` and `label`, and `answerKey`, one of the labels.

    There are 3 to 5 options; their labels are letters, or numbers in some rows.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    return _labelled(row, 'question')


def parse_openbookqa(row: Row) -> Item:
    """Parse `question_stem`, and `choices` and `answerKey` as in ARC.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    return _labelled(row, 'question_stem')


def parse_piqa(row: Row) -> Item:
    """Parse `goal`, the options `sol1` and `sol2`, and `label`, which is 0 or 1.

    White space around the texts is kept. 118 of the 1,838 rows of validation have some, and the
    prompts of LLM-Adapters and of lm-evaluation-harness contain it.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    options = [fields.raw_text(row, 'sol1'), fields.raw_text(row, 'sol2')]
    label = fields.index(row, 'label', len(options), ' (the test split has no labels)')
    return choice_item(row.location, fields.raw_text(row, 'goal'), options, label)


def parse_boolq(row: Row) -> Item:
    """Parse `passage`, `question`, and `answer`, which is true or false.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    label = 0 if fields.boolean(row, 'answer') else 1
    question, passage = fields.text(row, 'question'), fields.text(row, 'passage')
    return choice_item(row.location, question, BOOLQ_OPTIONS, label, passage)


def _labelled(row: Row, question_field: str) -> Item:
    options = fields.texts(row, 'text', within='choices')
    labels = fields.texts(row, 'label', within='choices')
    if labels not in (list('ABCDE'[: len(options)]), list('12345'[: len(options)])):
        raise BrokenRowError(
            f"{row.location}: the labels in 'choices' are {', '.join(labels)} for {len(options)} "
            'options; they must be A to E or 1 to 5 in order, one for each.'
        )
    key = fields.text(row, 'answerKey')
    if key not in labels:
        raise BrokenRowError(
            f"{row.location}: field 'answerKey' is {key!r}; it must be one of {', '.join(labels)}."
        )
    return choice_item(row.location, fields.text(row, question_field), options, labels.index(key))

"""Parser of MMLU: questions of 57 subjects with four options."""

from malora_jax.data.datasets import fields
from malora_jax.data.datasets.item import BrokenRowError, Item, choice_item
from malora_jax.data.file_rows import Row


def parse_mmlu(row: Row) -> Item:
    """Parse `subject`, `question`, four `choices`, and `answer`, the index of the right one.

    The passage of the item is the sentence that introduces the subject in the prompts of the
    paper (Hendrycks et al. 2021) and of lm-evaluation-harness.

    Raises:
        BrokenRowError: The row cannot be used.
    """
    options = fields.raw_texts(row, 'choices')
    if len(options) != 4:
        raise BrokenRowError(f'{row.location} has {len(options)} choices; there must be 4.')
    label = fields.index(row, 'answer', len(options))
    subject = fields.text(row, 'subject').replace('_', ' ')
    passage = f'The following are multiple choice questions (with answers) about {subject}.'
    question = fields.text(row, 'question')
    return choice_item(row.location, question, options, label, passage, is_distinct=False)

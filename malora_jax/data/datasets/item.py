"""Common representation of a row of any public dataset, and the error for an unusable row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from malora_jax.errors import UserError


class BrokenRowError(UserError):
    """Error for an unusable row; its message starts with the row's location and names the problem.

    For example::

        raise BrokenRowError(f"{row.location}: field 'label' is missing.")
    """


@dataclass(frozen=True)
class Item:
    """A question with all data for asking it in any prompt form and for scoring an answer.

    An item has either options with a label, or answers. For example::

        Item('What is 2 + 2?', answers=('4',))

    Attributes:
        question: Question text; for HumanEval the beginning of a program.
        passage: Text that the question is about; '' = none.
        options: Options of a multiple-choice question.
        label: Index of the right option; -1 = there are no options.
        answers: All right answers; the first one is trained on.
        test: Python source that defines `check(candidate)`; '' = the answer is not a program.
        entry_point: Name of the function that is passed to `check`.
        opening: First words of a sentence that each option completes; '' = none.
    """

    question: str
    passage: str = ''
    options: tuple[str, ...] = ()
    label: int = -1
    answers: tuple[str, ...] = ()
    test: str = ''
    entry_point: str = ''
    opening: str = ''


def choice_item(
    location: str,
    question: str,
    options: Sequence[str],
    label: int,
    passage: str = '',
    *,
    is_distinct: bool = True,
) -> Item:
    """Return an item of a multiple-choice question.

    Args:
        location: Location of the row, for error messages.
        question: Question text.
        options: Two or more options.
        label: Index of the right option.
        passage: Text that the question is about; '' = none.
        is_distinct: Whether every other option must differ from the right one. Some published
            benchmarks score rows in which an option is repeated.

    Raises:
        BrokenRowError: There are fewer than two options, or another option equals the right one.
    """
    if len(options) < 2:
        raise BrokenRowError(f'{location} has {len(options)} options; there must be 2 or more.')
    stripped = [option.strip() for option in options]
    count = stripped.count(stripped[label])
    if is_distinct and count > 1:
        raise BrokenRowError(
            f'{location}: the right option ({stripped[label][:60]!r}) appears {count} times; all '
            'other options must differ from it.'
        )
    return Item(question, passage, tuple(options), label)


def group_answers(items: Iterable[Item]) -> list[Item]:
    """Merge the items that have the same question into one item with all distinct answers.

    Questions and answers keep the order in which they first occur. E2E needs this: its question is
    a meaning representation, and each row has one of several reference texts. All of these texts
    count when an answer is scored. In the cleaned version, the rows are not always adjacent.

    For example::

        group_answers([Item('a', answers=('1',)), Item('a', answers=('2',))])
        # [Item('a', answers=('1', '2'))]
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.question, []).append(item)
    return [
        replace(group[0], answers=tuple(dict.fromkeys(a for item in group for a in item.answers)))
        for group in groups.values()
    ]

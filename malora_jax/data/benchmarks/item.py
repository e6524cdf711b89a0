"""The common form of a row of any dataset, and the error for a row that cannot be used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from malora_jax.errors import UserError


class BrokenRowError(UserError):
    """A row that cannot be used; its message starts with the row's place and says what is wrong."""


@dataclass(frozen=True)
class Item:
    """A question with what is needed to ask it in any form and to score an answer.

    There are either options with a label, or answers.

    Attributes:
        question: what is asked; for HumanEval the beginning of a program.
        passage: a text that the question is about; '' = none.
        options: the answers to choose from.
        label: index of the right option; -1 = there are no options.
        answers: all right answers, the first one to train on.
        test: Python that defines `check(candidate)`; '' = the answer is no program.
        entry_point: the function that is handed to `check`.
    """

    question: str
    passage: str = ''
    options: tuple[str, ...] = ()
    label: int = -1
    answers: tuple[str, ...] = ()
    test: str = ''
    entry_point: str = ''


def choice(
    place: str, question: str, options: Sequence[str], label: int, passage: str = ''
) -> Item:
    """An item with options; `label` is an index of them.

    Args:
        place: of the row, for messages.
        question: what is asked.
        options: two or more.
        label: index of the right one.
        passage: what the question is about; '' = nothing.

    Raises:
        BrokenRowError: there are less than two options, or the right one is there twice.
    """
    if len(options) < 2:
        raise BrokenRowError(f'{place} has {len(options)} options; there must be 2 or more.')
    if options.count(options[label]) > 1:
        raise BrokenRowError(
            f'{place}: the right option ({options[label][:60]!r}) is there '
            f'{options.count(options[label])} times; the others must differ from it.'
        )
    return Item(question, passage, tuple(options), label)


def group_answers(items: Iterable[Item]) -> list[Item]:
    """One item for each question, with the distinct answers of all its items, in their order.

    Meaning representations of E2E stand in several rows, one for each reference, which all count
    when one answer is scored. In the cleaned version such rows are not always neighbours.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.question, []).append(item)
    return [
        replace(group[0], answers=tuple(dict.fromkeys(a for item in group for a in item.answers)))
        for group in groups.values()
    ]

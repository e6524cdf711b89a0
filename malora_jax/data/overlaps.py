"""Overlaps of training and test sets: test questions that are also trained on.

Two questions count as the same if they differ only in white space and letter case. Published splits
are used as they are, so an overlap is reported and not removed. If a question has options, it is
the same problem only if its options are the same, too; both numbers are counted. For example, two
questions 'What is a mammal?' may have other options.
"""

from collections.abc import Sequence
from typing import NamedTuple

from malora_jax.data.datasets import Item, get_dataset
from malora_jax.data.examples import question_key
from malora_jax.data.store import Store


class Overlap(NamedTuple):
    """The overlap of a test set with a training set.

    For example::

        Overlap('arc_easy', 'arc_challenge', questions=2376, shared=3, same_options=1)

    Attributes:
        test: Name of the dataset that is scored.
        train: Name of the dataset that is trained on.
        questions: Number of test questions.
        shared: Number of test questions that are also training questions.
        same_options: Number of test questions that the training set has with the same options. For
            a dataset without options, it equals `shared`.
    """

    test: str
    train: str
    questions: int
    shared: int
    same_options: int


_Problem = tuple[str, frozenset[str]]


def count_overlaps(store: Store, train: Sequence[str], test: Sequence[str]) -> list[Overlap]:
    """Count the questions that each test set shares with each training set.

    For example, with datasets that are prepared in `store`::

        count_overlaps(store, ['arc_challenge', 'openbookqa'], ['arc_easy'])

    Args:
        store: Store in which all datasets are prepared.
        train: Names of the datasets that are trained on.
        test: Names of the datasets that are scored.

    Returns:
        The overlaps with at least one shared question, by test set and then by training set.

    Raises:
        UserError: A dataset is not prepared, or lacks its split.
    """
    problems = {name: _problems(store, name, 'test') for name in test}
    found: dict[tuple[str, str], Overlap] = {}
    for trained in train:
        # Only one training set is in memory at a time.
        seen = {*_problems(store, trained, 'train')}
        questions = {question for question, _ in seen}
        for scored, asked in problems.items():
            shared = sum(question in questions for question, _ in asked)
            same = sum(problem in seen for problem in asked)
            if shared:
                found[scored, trained] = Overlap(scored, trained, len(asked), shared, same)
    return [found[pair] for pair in ((s, t) for s in test for t in train) if pair in found]


def _problems(store: Store, name: str, split: str) -> list[_Problem]:
    return [_problem(item) for item in store.items(get_dataset(name), split)]


def _problem(item: Item) -> _Problem:
    question = question_key(f'{item.question} {item.opening}')
    return question, frozenset(question_key(option) for option in item.options)

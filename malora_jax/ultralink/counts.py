"""Conversations, turns and tokens of data, for each language and subset."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import tqdm

from malora_jax.ultralink import conversations, shards
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.release import without_document

# Language and subset.
Group = tuple[str, str]
# How many texts have how many tokens.
Lengths = collections.Counter[int]


@dataclasses.dataclass
class Counts:
    """Of some conversations.

    Attributes:
        conversations: how many.
        questions, answers: their lengths in tokens; without documents.
    """

    conversations: int = 0
    questions: Lengths = dataclasses.field(default_factory=collections.Counter)
    answers: Lengths = dataclasses.field(default_factory=collections.Counter)

    @property
    def turns(self) -> int:
        """Questions with their answers."""
        return self.questions.total()

    def __add__(self, other: 'Counts') -> 'Counts':
        """Of both together."""
        return Counts(
            self.conversations + other.conversations,
            self.questions + other.questions,
            self.answers + other.answers,
        )


def mean(lengths: Lengths) -> float:
    """Tokens of a text on average; 0 if there is none."""
    tokens = sum(length * number for length, number in lengths.items())
    return tokens / max(1, lengths.total())


def count(inputs: Sequence[pathlib.Path], tokens: Callable[[str], int]) -> dict[Group, Counts]:
    """Counts rows, in the order of languages and subsets.

    Args:
        inputs: rows as in `conversations`.
        tokens: of a text.

    Raises:
        UserError: as `shards.read`, or a row is no conversation.
    """
    found: dict[Group, Counts] = collections.defaultdict(Counts)
    rows = shards.read(inputs)
    for row in tqdm.tqdm(rows, 'count', shards.count(inputs), unit=' rows', delay=1.0):
        conversation = conversations.read(row)
        of_group = found[conversation.language, conversation.subset]
        of_group.conversations += 1
        first, *rest = conversation.data
        questions = [without_document(first), *rest[1::2]]
        of_group.questions.update(map(tokens, questions))
        of_group.answers.update(map(tokens, rest[::2]))
    groups = [(language, subset) for language in LANGUAGES for subset in SUBSETS]
    return {group: found[group] for group in groups if group in found}


def together(counts: Mapping[Group, Counts], name: str = '') -> Counts:
    """Of all groups with a language or a subset of that name; of all for ''."""
    chosen = (each for group, each in counts.items() if not name or name in group)
    return sum(chosen, Counts())

"""Counts of conversations, turns and tokens for each language and subset."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from malora_jax.progress import track
from malora_jax.ultralink import conversations, shards
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.release_export import without_document

# A pair of a language code and a subset.
Group = tuple[str, str]
# Histogram of text lengths: from the length in tokens to the number of texts.
Lengths = collections.Counter[int]


@dataclasses.dataclass
class ConversationCounts:
    """Number of conversations, and the token counts of their questions and answers.

    Attributes:
        conversations: Number of conversations.
        questions, answers: Histogram of the lengths of all questions or answers, in tokens. A
            document in the first question is not counted.
    """

    conversations: int = 0
    questions: Lengths = dataclasses.field(default_factory=collections.Counter)
    answers: Lengths = dataclasses.field(default_factory=collections.Counter)

    @property
    def turns(self) -> int:
        """Number of turns: a turn is a question with its answer."""
        return self.questions.total()

    def __add__(self, other: 'ConversationCounts') -> 'ConversationCounts':
        """Return the counts of both sets of conversations."""
        return ConversationCounts(
            self.conversations + other.conversations,
            self.questions + other.questions,
            self.answers + other.answers,
        )


def mean_length(lengths: Lengths) -> float:
    """Return the mean length in tokens; 0 if there are no texts."""
    tokens = sum(length * number for length, number in lengths.items())
    return tokens / max(1, lengths.total())


def count_conversations(
    inputs: Sequence[pathlib.Path], count_tokens: Callable[[str], int]
) -> dict[Group, ConversationCounts]:
    """Count conversations, turns and tokens for each language and subset.

    Args:
        inputs: Files or directories with rows of `conversations`.
        count_tokens: Function that returns the number of tokens of a text.

    Returns:
        Counts by language and subset, in the order of `LANGUAGES` and `SUBSETS`.

    Raises:
        UserError: An input is missing or broken (see `shards.read`), or a row is not a
            conversation.
    """
    counts: dict[Group, ConversationCounts] = collections.defaultdict(ConversationCounts)
    for row in track(shards.read(inputs), 'count', 'row', shards.count_rows(inputs)):
        conversation = conversations.read(row)
        group_counts = counts[conversation.language, conversation.subset]
        group_counts.conversations += 1
        first, *rest = conversation.data
        questions = [without_document(first), *rest[1::2]]
        group_counts.questions.update(map(count_tokens, questions))
        group_counts.answers.update(map(count_tokens, rest[::2]))
    groups = [(language, subset) for language in LANGUAGES for subset in SUBSETS]
    return {group: counts[group] for group in groups if group in counts}


def sum_counts(counts: Mapping[Group, ConversationCounts], name: str = '') -> ConversationCounts:
    """Return the sum of the counts of several groups.

    Args:
        counts: Counts by language and subset.
        name: Language or subset of the groups that are summed; '' = all groups.
    """
    chosen = (each for group, each in counts.items() if not name or name in group)
    return sum(chosen, ConversationCounts())

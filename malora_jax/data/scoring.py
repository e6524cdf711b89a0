"""Scoring rules: how the held-out questions of a task are answered, scored and recorded.

A task has one object of a class below. The object knows everything about its rule that needs no
model. `malora_jax.evaluation.runner` has one function for each class, which asks the model.
"""

import abc
import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from malora_jax.data.examples import Example

# Tokens that a generated answer may have beyond the longest right answer.
_SPARE_TOKENS = 4
# Limits of the search for the best constant answer: candidates, and scores in total.
_MAX_CONSTANTS = 200
_MAX_SCORES = 20_000


@dataclass(frozen=True)
class Scoring(abc.ABC):
    """A scoring rule with its settings.

    Attributes:
        rule: Name of the rule in results.
        metric: Name of the mean score in results.
        form: Name of the prompt form; '' = the question in the run's template, and nothing else.
        shots: Number of solved examples in front of the question.
        stop: Texts that end a generated answer.
        max_new_tokens: Maximum number of tokens of a generated answer; 0 = a few more than the
            longest right answer has.
    """

    rule: str
    metric: str
    _: KW_ONLY
    form: str = ''
    shots: int = 0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0

    @abc.abstractmethod
    def constant(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the majority baseline: the best constant answer, and its mean score.

        Args:
            held_out: Held-out questions, at least one.
        """

    def needed_tokens(self, lengths: Iterable[int]) -> int:
        """Return the number of tokens that generation must allow; 0 = any number is enough.

        Args:
            lengths: Number of tokens of each right answer. They are computed only if needed.
        """
        return 0 if self.max_new_tokens else max(lengths)

    def token_limit(self, lengths: Iterable[int]) -> int:
        """Return the maximum number of tokens of a generated answer.

        Without `max_new_tokens`, the limit is a little above the longest right answer, because a
        longer answer cannot match exactly.

        Args:
            lengths: Number of tokens of each right answer. They are computed only if needed.
        """
        return self.max_new_tokens or _SPARE_TOKENS + self.needed_tokens(lengths)

    def record(self, template: str, limit: int, temperature: float, samples: int) -> dict[str, Any]:
        """Return the description of the rule for results.

        Args:
            template: Name of the prompt template.
            limit: Maximum number of tokens of a generated answer.
            temperature: Sampling temperature of the run, for rules that sample.
            samples: Number of samples of each question, for rules that sample.
        """
        return {
            'rule': self.rule,
            'form': self.form,
            'template': template,
            'shots': self.shots,
            **self._decoding(limit, temperature, samples),
        }

    def _decoding(self, limit: int, temperature: float, samples: int) -> dict[str, Any]:
        return {'decoding': 'greedy', 'max_new_tokens': limit, 'stop': self.stop}


@dataclass(frozen=True)
class LikelihoodScoring(Scoring):
    """The model takes the most probable of the options; each example has `options` and `label`."""

    rule: str = 'likelihood'
    metric: str = 'accuracy'

    def constant(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the place of the option that is right most often, and how often it is right."""
        labels = collections.Counter(example.metadata['label'] for example in held_out)
        label, count = labels.most_common(1)[0]
        return f'option {label + 1}', count / len(held_out)

    def needed_tokens(self, lengths: Iterable[int]) -> int:
        """Return 0, because nothing is generated."""
        return 0

    def _decoding(self, limit: int, temperature: float, samples: int) -> dict[str, Any]:
        return {'normalized_by': 'characters of the option'}


@dataclass(frozen=True)
class GeneratedScoring(Scoring):
    """The model generates an answer, and a scorer compares it with the right one.

    Attributes:
        score: Scorer; score(prediction, example) is in [0, 1], and 1.0 for a right answer only.
    """

    score: Callable[[str, Example], float]

    def constant(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the answer with the best mean score over all questions, and that score.

        The most frequent right answers are the candidates, and the first of equals is returned.
        Many questions have fewer candidates, because trying all of them would take long.
        """
        answers = collections.Counter(example.answer for example in held_out)
        candidates = min(_MAX_CONSTANTS, 1 + _MAX_SCORES // len(held_out))
        scores = {
            answer: sum(self.score(answer, example) for example in held_out)
            for answer, _ in answers.most_common(candidates)
        }
        answer = max(scores, key=lambda candidate: scores[candidate])
        return answer, scores[answer] / len(held_out)


@dataclass(frozen=True)
class ProgramScoring(Scoring):
    """The model writes programs that are run; each example has `test` and `entry_point`."""

    rule: str = 'code'
    metric: str = 'pass@1'

    def constant(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return no answer, because no program solves two problems."""
        return '', 0.0

    def _decoding(self, limit: int, temperature: float, samples: int) -> dict[str, Any]:
        if temperature == 0:
            return super()._decoding(limit, temperature, samples)
        return {
            'decoding': 'sampled',
            'temperature': temperature,
            'samples': samples,
            'max_new_tokens': limit,
            'stop': self.stop,
        }

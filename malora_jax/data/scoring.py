"""Scoring rules: how a model answers a task's held-out questions, and how answers are scored.

Each task has one instance of a class below, which holds all parts of its rule that need no model.
`malora_jax.evaluation.runner` has one function per class, which runs the model.
"""

import abc
import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from malora_jax.data.examples import Example

# Number of tokens that a generated answer may be longer than the longest right answer.
_SPARE_TOKENS = 4
# Limits of the search for the majority baseline: number of candidates and total number of scores.
_MAX_CONSTANTS = 200
_MAX_SCORES = 20_000


@dataclass(frozen=True)
class Scoring(abc.ABC):
    """A scoring rule with its settings; the base class of all rules.

    For example::

        get_task('gcd').scoring.metric  # 'exact_match'

    Attributes:
        rule: Name of the rule in results.
        metric: Name of the mean score in results.
        form: Name of the prompt form of a public dataset; '' = only the question, in the run's
            template.
        shots: Number of few-shot (solved) examples in front of the question.
        stop: Stop strings, which end a generated answer.
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
    def majority_baseline(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the majority baseline: the best constant answer and its mean score.

        Args:
            held_out: Held-out questions, at least one.
        """

    def needed_tokens(self, lengths: Iterable[int]) -> int:
        """Return the smallest value of `evaluation.max_new_tokens` that cuts off no right answer.

        It is 0 if this rule has its own `max_new_tokens`.

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

    def describe(
        self, template: str, limit: int, temperature: float, samples: int
    ) -> dict[str, Any]:
        """Return the settings of this rule by name, which a run writes to `results.json`.

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
    """Multiple choice by log-likelihood: the most probable option is the model's answer.

    Each example has `options`, the text of each option, and `label`, the index of the right one, in
    its metadata. For example::

        scoring = LikelihoodScoring(form='completion')
    """

    rule: str = 'likelihood'
    metric: str = 'accuracy'

    def majority_baseline(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the majority baseline: always the option at the same place, such as 'option 2'.

        The place is the one that is right most often. The second result is the accuracy.
        """
        labels = collections.Counter(example.metadata['label'] for example in held_out)
        label, count = labels.most_common(1)[0]
        return f'option {label + 1}', count / len(held_out)

    def needed_tokens(self, lengths: Iterable[int]) -> int:
        """Return 0, because nothing is generated."""
        return 0

    def _decoding(self, limit: int, temperature: float, samples: int) -> dict[str, Any]:
        return {'normalized_by': 'characters of the option'}


@dataclass(frozen=True)
class GenerationScoring(Scoring):
    """Free-form generation: a scorer compares the generated answer with the right one.

    For example::

        scoring = GenerationScoring('exact_match', 'exact_match', exact_match, max_new_tokens=32)

    Attributes:
        score: Scorer; score(prediction, example) is in [0, 1], and 1.0 only for a right answer.
        more: Names and scorers of additional scores of the same answer.
    """

    score: Callable[[str, Example], float]
    _: KW_ONLY
    more: tuple[tuple[str, Callable[[str, Example], float]], ...] = ()

    def majority_baseline(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return the majority baseline: the constant answer with the best mean score.

        The candidates are the most frequent right answers; of equally good ones, the first is
        returned. If there are many questions, fewer candidates are tried, because each is scored on
        every question.
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
    r"""Code generation: the model writes programs, which are run on tests.

    Each example has `test` and `entry_point` in its metadata. For example::

        scoring = ProgramScoring(stop=('\ndef',), max_new_tokens=512)
    """

    rule: str = 'code'
    metric: str = 'pass@1'

    def majority_baseline(self, held_out: Sequence[Example]) -> tuple[str, float]:
        """Return an empty answer with score 0, because no program solves two problems."""
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

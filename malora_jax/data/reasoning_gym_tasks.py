"""Tasks made by reasoning-gym: endless seeded questions with verified answers, offline.

The settings keep answers below 20 tokens and questions to about 60 (90 for `word_sorting`, most of
them instructions), so that a small model can learn each task from a few hundred examples and a row
of 256 tokens holds several.

What the table leaves out, and why: `ransom_note` and `isomorphic_strings` iterate over sets of
strings, so the same seed gives other questions in the next process; `number_sorting` accepts
answers that are off by one; `complex_arithmetic` accepts 'nan'; `number_format` has rounding noise
in its answers; `caesar_cipher` has few plain texts, so that training shows the held-out ones;
`count_bits` and `base_conversion` are out of a small model's reach.

Held-out questions differ from training by their text. Of a sum, that leaves 34 + 12 in training and
12 + 34 held out.
"""

import functools
import importlib.util
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from malora_jax.data.examples import Example
from malora_jax.data.seeds import stable_seed
from malora_jax.data.tasks import Task, register, take_distinct
from malora_jax.errors import UserError

_DRAWS_PER_EXAMPLE = 20

_SETTINGS: dict[str, dict[str, Any]] = {
    # Letters and words.
    # Longer words are a hazard to the scorer: with 9 letters, the right answer followed by
    # anything counts as right too.
    'spell_backward': {'min_word_len': 3, 'max_word_len': 5},
    'word_sequence_reversal': {'min_words': 3, 'max_words': 4},
    'word_sorting': {'min_words': 3, 'max_words': 3, 'max_word_length': 6},
    'letter_counting': {'min_words': 3, 'max_words': 5},
    # Numbers.
    'number_filtering': {'max_numbers': 4, 'max_decimals': 0, 'min_value': 0.0},
    'chain_sum': {'max_terms': 2, 'min_digits': 2, 'max_digits': 2},
    'decimal_chain_sum': {'max_terms': 2, 'max_digits': 1, 'max_decimal_places': 2},
    'simple_equations': {
        'max_terms': 2,
        'max_value': 50,
        'operators': ('+', '-'),
        'operators_weights': [0.5, 0.5],
    },
    'gcd': {'max_value': 200},
    'fraction_simplification': {
        'max_value': 100,
        'min_factor': 2,
        'max_factor': 10,
        'styles': ('plain',),
    },
    # Finding a fact among others.
    'needle_haystack': {'min_num_statements': 3, 'max_num_statements': 4},
    # Knowledge of the world and a little arithmetic.
    'leg_counting': {'min_animals': 2, 'max_animals': 2, 'max_instances': 5},
    'time_intervals': {'task_types': ['date'], 'max_date_difference_days': 20},
    'calendar_arithmetic': {'tasks': ['weekday_offset'], 'offset_upper_bound': 10},
    # With four people or more, some in-laws are labelled the wrong way round.
    'family_relationships': {'min_family_size': 3, 'max_family_size': 3},
}


@functools.cache
def _reasoning_gym() -> types.ModuleType:
    """The package, imported on first use."""
    if importlib.util.find_spec('reasoning_gym') is None:
        raise UserError('The package reasoning-gym is missing: run `make setup` to install it.')
    if 'pycosat' not in sys.modules and importlib.util.find_spec('pycosat') is None:
        # A C extension without wheels, which only the zebra puzzles call.
        sys.modules['pycosat'] = types.ModuleType('pycosat')
    try:
        return importlib.import_module('reasoning_gym')
    except ImportError as error:
        raise UserError(f'reasoning-gym needs more ({error}): run `make setup`.') from error


@dataclass(frozen=True)
class ReasoningGymSource:
    """A reasoning-gym data set with its settings, as a source and as a scorer.

    Attributes:
        name: the data set's name.
        settings: its parameters, apart from `seed` and `size`.
    """

    name: str
    settings: Mapping[str, Any]

    def examples(self, seed: int, count: int) -> list[Example]:
        """`count` examples with distinct questions; other seeds give other ones.

        Raises:
            UserError: the data set has too few, or reasoning-gym is not installed.
        """
        # Item i is drawn from seed + i: seeds must lie far apart, or the data sets overlap.
        draws = count * _DRAWS_PER_EXAMPLE
        dataset = self._dataset(stable_seed('reasoning-gym', self.name, seed), draws)
        entries = (dataset[index] for index in range(draws))
        return take_distinct(self.name, map(_example, entries), count)

    def score(self, prediction: str, example: Example) -> float:
        """1.0 if the data set's own scorer calls the prediction right, else 0.0.

        White space around it is ignored; so is what scorers give to answers that are nearly right.
        """
        entry = {
            'question': example.question,
            'answer': example.answer,
            'metadata': example.metadata,
        }
        return float(self._scorer.score_answer(answer=prediction.strip(), entry=entry) == 1.0)

    @functools.cached_property
    def _scorer(self) -> Any:
        return self._dataset(seed=0, size=1)

    def _dataset(self, seed: int, size: int) -> Any:
        return _reasoning_gym().create_dataset(self.name, seed=seed, size=size, **self.settings)


def _example(entry: dict[str, Any]) -> Example:
    return Example(entry['question'].strip(), entry['answer'], entry['metadata'])


for _name, _settings in _SETTINGS.items():
    _source = ReasoningGymSource(_name, _settings)
    register(Task(_name, _source, _source.score))

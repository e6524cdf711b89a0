import pytest

from malora_jax.data import (
    Example,
    GenerationScoring,
    LikelihoodScoring,
    ProgramScoring,
    exact_match,
)

STOP = {'stop': ('\n',), 'max_new_tokens': 9}
EXACT = GenerationScoring('exact_match', 'exact_match', exact_match)
PROGRAM = ProgramScoring(shots=1, **STOP)


def never():
    raise AssertionError('lengths are not needed')
    yield


def test_the_majority_baseline_takes_the_option_that_is_right_most_often():
    held_out = [Example('?', 'x', {'label': label}) for label in (2, 0, 2, 1)]
    assert LikelihoodScoring().majority_baseline(held_out) == ('option 3', 0.5)


def test_no_program_is_a_constant_answer():
    assert PROGRAM.majority_baseline([Example('?', 'x', {})]) == ('', 0.0)


def test_the_first_of_equal_answers_is_the_baseline():
    assert EXACT.majority_baseline([Example('?', answer, {}) for answer in 'baab']) == ('b', 0.5)


def test_without_a_limit_the_longest_right_answer_decides():
    assert (EXACT.needed_tokens([3, 7, 5]), EXACT.token_limit([3, 7, 5])) == (7, 11)


@pytest.mark.parametrize('scoring', [PROGRAM, GenerationScoring('a', 'b', exact_match, **STOP)])
def test_a_limit_needs_no_lengths(scoring):
    assert (scoring.needed_tokens(never()), scoring.token_limit(never())) == (0, 9)


def test_options_need_no_tokens():
    assert LikelihoodScoring().needed_tokens(never()) == 0


@pytest.mark.parametrize(
    'scoring, temperature, expected',
    [
        (
            LikelihoodScoring(form='completion'),
            0.8,
            {
                **{'rule': 'likelihood', 'form': 'completion', 'template': 'bare', 'shots': 0},
                'normalized_by': 'characters of the option',
            },
        ),
        (
            EXACT,
            0.8,
            {
                **{'rule': 'exact_match', 'form': '', 'template': 'bare', 'shots': 0},
                **{'decoding': 'greedy', 'max_new_tokens': 11, 'stop': ()},
            },
        ),
        (
            PROGRAM,
            0.0,
            {
                **{'rule': 'code', 'form': '', 'template': 'bare', 'shots': 1},
                **{'decoding': 'greedy', 'max_new_tokens': 11, 'stop': ('\n',)},
            },
        ),
        (
            PROGRAM,
            0.8,
            {
                **{'rule': 'code', 'form': '', 'template': 'bare', 'shots': 1},
                **{'decoding': 'sampled', 'temperature': 0.8, 'samples': 4},
                **{'max_new_tokens': 11, 'stop': ('\n',)},
            },
        ),
    ],
)
def test_the_record_of_a_rule(scoring, temperature, expected):
    """Records keep the order of their keys, which results show."""
    record = scoring.describe('bare', 11, temperature, samples=4)
    assert list(record.items()) == list(expected.items())

"""Messages about unknown names and numbers out of range."""

import dataclasses

import pytest

from malora_jax import errors


def test_near_names_come_first():
    error = errors.unknown_name('method', 'malroa', ['lora', 'malora', 'dora'])
    assert str(error) == "Unknown method 'malroa': did you mean malora or lora?"


def test_without_a_near_name_all_are_listed():
    error = errors.unknown_name('task', 'xyz', ['gcd', 'chain_sum'])
    assert str(error) == "Unknown task 'xyz': known are chain_sum, gcd."


def test_of_very_many_names_some_are_listed():
    told = str(errors.unknown_name('field', 'x' * 10**5, map(str, range(10**5))))
    assert told.endswith(' and 99,900 more.') and len(told) < 2000


@pytest.mark.parametrize('value', [2**31, -(2**31), 10**20, 10**5000], ids=list('abcd'))
def test_whole_numbers_of_a_config_fit_into_32_bits(value):
    @dataclasses.dataclass(frozen=True)
    class Section:
        count: int

        def __post_init__(self):
            errors.check_types('data', self)

    Section(2**31 - 1)
    with pytest.raises(errors.UserError, match=r'must be at most 2,147,483,647 in magnitude\.$'):
        Section(value)

"""Messages for names that are not known."""

from malora_jax import errors


def test_near_names_come_first():
    error = errors.unknown_name('method', 'malroa', ['lora', 'malora', 'dora'])
    assert str(error) == "Unknown method 'malroa': did you mean malora or lora?"


def test_without_a_near_name_all_are_listed():
    error = errors.unknown_name('task', 'xyz', ['gcd', 'chain_sum'])
    assert str(error) == "Unknown task 'xyz': known are chain_sum, gcd."

import pytest

from malora_jax.data import get_template
from malora_jax.errors import UserError


def test_chatml():
    template = get_template('chatml')
    assert template.prompt('Why?') == '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
    assert template.completion('So.') == 'So.'
    assert template.end == '<|im_end|>'


def test_plain():
    template = get_template('plain')
    assert template.prompt('Why?') == 'Question: Why?\nAnswer:'
    assert template.completion('So.') == ' So.'
    assert template.end is None


def test_braces_in_a_question_are_text():
    assert get_template('plain').prompt('{question} {}') == 'Question: {question} {}\nAnswer:'


def test_a_misspelt_template():
    with pytest.raises(UserError, match=r"^Unknown template 'chatlm': did you mean chatml\?$"):
        get_template('chatlm')

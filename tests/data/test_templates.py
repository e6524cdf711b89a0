import pytest

from malora_jax.data import get_template
from malora_jax.errors import UserError


def test_chatml(tokenizer):
    template = get_template('chatml')
    prompt = template.prompt(tokenizer, 'Why?')
    assert prompt == '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
    assert template.completion(tokenizer, 'Why?', 'So.') == 'So.'
    assert template.get_end_token(tokenizer) == '<|im_end|>'


def test_plain(tokenizer):
    template = get_template('plain')
    assert template.prompt(tokenizer, 'Why?') == 'Question: Why?\nAnswer:'
    assert template.completion(tokenizer, 'Why?', 'So.') == ' So.'
    assert template.get_end_token(tokenizer) is None


def test_braces_in_a_question_are_text(tokenizer):
    prompt = get_template('plain').prompt(tokenizer, '{question} {}')
    assert prompt == 'Question: {question} {}\nAnswer:'


def test_a_misspelt_template():
    right = r'did you mean chatml or chat\?$'
    with pytest.raises(UserError, match=rf"^Unknown template 'chatlm': {right}"):
        get_template('chatlm')

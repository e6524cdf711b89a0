"""Answers, chats and scores of a byte-level model with random weights."""

import jax
import numpy as np
import pytest

from malora_jax.errors import UserError
from malora_jax.inference.language_model import GenerationConfig
from tests.helpers.language_model import MODEL, VARIABLES, AsciiTokenizer, language_model
from tests.helpers.models import logits_of

pytestmark = pytest.mark.usefixtures('compile_quickly')


def test_a_question_is_put_into_the_template():
    model = language_model('plain')
    assert bytes(model.encode_prompt('Why?')) == b'Question: Why?\nAnswer:'
    assert model.encode_prompt([{'role': 'user', 'content': 'Why?'}]) == model.encode_prompt('Why?')


def test_a_conversation_in_turns():
    turns = [('user', 'Hi'), ('assistant', 'Yes?'), ('user', 'Why?')]
    messages = [{'role': role, 'content': content} for role, content in turns]
    expected = (
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n'
        '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
    )
    assert language_model().encode_prompt(messages) == AsciiTokenizer().encode(expected)
    plain = bytes(language_model('plain').encode_prompt(messages)).decode()
    assert plain == 'Question: Hi\nAnswer: Yes?\nQuestion: Why?\nAnswer:'


def test_a_text_that_starts_with_a_bos_token():
    class Bos(AsciiTokenizer):
        bos_id = 256

    prompt = language_model('plain', Bos()).encode_prompt([{'role': 'user', 'content': 'Why?'}])
    assert prompt[0] == 256 and bytes(prompt[1:]) == b'Question: Why?\nAnswer:'


@pytest.mark.parametrize(
    'messages, expected',
    [
        ([], "A conversation must end with a message of role 'user'."),
        (
            [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}],
            "A conversation must end with a message of role 'user'.",
        ),
        (
            [{'role': 'system', 'content': 'a'}, {'role': 'user', 'content': 'b'}],
            "Template 'chatml' does not support messages of role 'system', only 'user' and "
            "'assistant'.",
        ),
        (
            [{'role': 'user', 'content': 3}],
            'Message 1 must have a role and a content, both texts.',
        ),
        ([{'role': 'user'}], 'Message 1 must have a role and a content, both texts.'),
        (['Why?'], 'Message 1 must have a role and a content, both texts.'),
    ],
)
def test_what_is_no_conversation(messages, expected):
    with pytest.raises(UserError) as caught:
        language_model().encode_prompt(messages)
    assert str(caught.value) == expected


def test_answers_are_those_of_a_chat():
    model = language_model()
    questions = ['Why?', 'Where is it?', 'Who?']
    answers = model.generate(questions, max_new_tokens=30)
    assert len({*answers}) == 3
    assert answers == [model.chat(question, max_new_tokens=30) for question in questions]
    pieces = list(model.stream('Why?', GenerationConfig(max_new_tokens=30)))
    assert len(pieces) > 2 and ''.join(pieces).strip() == answers[0]


def test_a_stop_ends_a_stream():
    model = language_model()
    whole = model.chat('Why?', max_new_tokens=60)
    stop = whole[8:11]
    assert model.chat('Why?', max_new_tokens=60, stop=(stop,)) == whole.split(stop)[0].strip()


def test_what_is_drawn_depends_on_the_seed():
    model = language_model()
    how = dict(max_new_tokens=30, temperature=1.0, top_k=80)
    assert model.chat('Why?', seed=3, **how) == model.chat('Why?', seed=3, **how)
    assert model.chat('Why?', seed=3, **how) != model.chat('Why?', seed=4, **how)
    assert len({*model.generate(['Why?', 'Why?'], **how)}) == 2


def test_scores_are_log_probabilities_of_the_answer_and_its_end():
    model = language_model()
    found = model.score(['Why?', 'Who?'], ['So.', 'Me'])
    for question, answer, likelihood in zip(['Why?', 'Who?'], ['So.', 'Me'], found, strict=True):
        tokens = model.encode_prompt(question) + AsciiTokenizer().encode(answer) + [model.end_id]
        count = len(answer) + 1
        logits = logits_of(MODEL, VARIABLES, [tokens])[0, -count - 1 : -1]
        expected = jax.nn.log_softmax(logits)[np.arange(count), tokens[-count:]].sum()
        np.testing.assert_allclose(likelihood.log_probability, expected, atol=1e-4)
        assert likelihood.num_tokens == count


@pytest.mark.parametrize(
    'field, value, right',
    [
        ('max_new_tokens', 0, 'at least 1'),
        ('temperature', -1.0, 'at least 0'),
        ('top_k', -1, 'at least 0'),
        ('top_p', 1.5, 'above 0 and at most 1'),
    ],
)
def test_settings_out_of_range(field, value, right):
    with pytest.raises(UserError) as caught:
        language_model().chat('Why?', **{field: value})
    assert str(caught.value) == f'{field} is {value}; it must be {right}.'


def test_one_question_is_no_list():
    with pytest.raises(TypeError, match='list of questions'):
        language_model().generate('Why?')

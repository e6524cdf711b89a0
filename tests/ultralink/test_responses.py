"""Responses of endpoints in the forms of many servers: replies, thoughts, tokens and errors."""

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import responses
from malora_jax.ultralink.llm.responses import TransientError
from malora_jax.ultralink.llm.usage import TokenUsage


def body(text, reason='stop', usage=None, **message):
    choice = {'message': {'role': 'assistant', 'content': text, **message}, 'finish_reason': reason}
    return {'choices': [choice], 'usage': usage or {'total_tokens': 7}}


@pytest.mark.parametrize(
    'text, answer',
    [
        ('<think>\nHm.\n</think>\n\nYes.', 'Yes.'),
        ('  <think></think>Yes.', 'Yes.'),
        ('<think>a</think>\n<think>b</think> Yes.', 'Yes.'),
        # The chat template ends the prompt with <think>.
        ('Hm, well.\n</think>\n\nYes.', 'Yes.'),
        # A text about such sections is not changed.
        ('Write <think>this</think> first.', 'Write <think>this</think> first.'),
        ('Yes.', 'Yes.'),
    ],
)
def test_thoughts_are_removed(text, answer):
    reply = responses.read_reply('E', body(text))
    assert (reply.text, reply.finish_reason) == (answer, 'stop')
    assert not responses.is_only_thought(body(text), reply)


@pytest.mark.parametrize(
    'response',
    [
        body('<think>Hm, let me', 'length'),
        body('<think>Hm, let me', 'stop'),
        body(None, 'length', reasoning_content='Hm, let me'),
        body(None, 'length', reasoning='Hm, let me'),
        body(
            '',
            'length',
            {
                'prompt_tokens': 3,
                'completion_tokens': 4,
                'completion_tokens_details': {'reasoning_tokens': 4},
            },
        ),
    ],
)
def test_a_reply_that_ends_in_a_thought_is_cut_off(response):
    reply = responses.read_reply('E', response)
    assert (reply.text, reply.finish_reason, reply.tokens) == ('', 'length', 7)
    assert responses.is_only_thought(response, reply)


@pytest.mark.parametrize(
    'usage, expected',
    [
        ({'prompt_tokens': 5, 'completion_tokens': 2, 'total_tokens': 7}, TokenUsage(5, 2)),
        ({'prompt_tokens': 5, 'completion_tokens': 2}, TokenUsage(5, 2)),
        ({'total_tokens': 7}, TokenUsage(0, 7)),
        # The total has tokens of the reasoning.
        ({'prompt_tokens': 5, 'completion_tokens': 2, 'total_tokens': 17}, TokenUsage(5, 12)),
        (
            {
                'prompt_tokens': 5,
                'completion_tokens': 2,
                'prompt_tokens_details': {'cached_tokens': 4},
            },
            TokenUsage(5, 2, 4),
        ),
        ({'prompt_tokens': '5', 'completion_tokens': None, 'total_tokens': -1}, TokenUsage()),
    ],
)
def test_numbers_of_tokens(usage, expected):
    reply = responses.read_reply('E', body('Yes.', usage=usage))
    assert reply.usage == expected and reply.tokens == expected.total


@pytest.mark.parametrize(
    'content, reason',
    [
        ({'error': {'message': 'No.', 'code': 'x'}}, 'No.'),
        ({'error': 'No.'}, 'No.'),
        ({'message': 'No.', 'object': 'error'}, 'No.'),
        ({'detail': 'No.'}, 'No.'),
        (
            {'detail': [{'loc': ['body', 'n'], 'msg': 'No.'}, {'loc': ['q'], 'msg': 'Never.'}]},
            'body.n: No.; q: Never.',
        ),
        ({'message': {'detail': [{'loc': ['body', 0], 'msg': 'No.'}]}}, 'body.0: No.'),
        ('No\nsuch page.', 'No such page.'),
        ({'reason': 1}, '{"reason": 1}'),
        ('x' * 1000, 'x' * 500 + '…'),
    ],
)
def test_the_reason_of_an_error_is_found(content, reason):
    with pytest.raises(UserError) as error:
        responses.read_error('E', 422, content, 'KEY')
    assert str(error.value) == f'E answers with status 422: {reason}'


def test_an_address_without_v1_is_named():
    expected = r'^E answers with status 404: Not Found: --base_url .* usually ends in /v1\.$'
    with pytest.raises(UserError, match=expected):
        responses.read_error('E', 404, '404: Not Found', 'KEY')
    with pytest.raises(UserError, match=r'status 404: No such model\.$'):
        responses.read_error('http://h/v1/', 404, {'error': 'No such model.'}, 'KEY')


def test_a_failure_that_may_be_gone_waits_as_the_server_asks():
    with pytest.raises(TransientError) as error:
        responses.read_error('E', 503, '', 'KEY', 7.0)
    assert error.value.kind == 'status 503' and error.value.wait_s(3) == 7.0
    waits = [TransientError('a', 'b').wait_s(attempt) for attempt in range(9)]
    assert 0.3 < waits[0] <= 0.5 and 6.0 <= waits[8] <= 8.0


def test_errors_with_status_200():
    with pytest.raises(TransientError, match=r'^E answers with an error: Overloaded\.$'):
        responses.read_reply('E', {'error': {'message': 'Overloaded.', 'code': 502}})
    with pytest.raises(OSError, match='No credits') as error:
        responses.read_reply('E', {'error': {'message': 'No credits.', 'code': 402}})
    assert not isinstance(error.value, TransientError)

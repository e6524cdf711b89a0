"""The server, called by OpenAI's own client and by plain HTTP, over a real socket."""

import asyncio
import concurrent.futures
import contextlib
import json
import time

import httpx
import numpy as np
import openai
import pytest

from malora_jax.models.engine import Engine, RequestOutput
from malora_jax.serving.middleware import MAX_BODY_BYTES
from tests.helpers.servers import QUESTION, language_model, serve_in_thread

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def address(compile_quickly):
    with serve_in_thread(batch_size=4) as found:
        yield found


@pytest.fixture(scope='module')
def client(address):
    return openai.OpenAI(base_url=f'{address}/v1', api_key='any', max_retries=0)


def open_requests(address: str) -> int:
    return httpx.get(f'{address}/health').json()['open_requests']


def soon_idle(address: str, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while open_requests(address) and time.monotonic() < until:
        time.sleep(0.02)
    return open_requests(address) == 0


def test_a_chat_says_what_the_model_says(client):
    found = client.chat.completions.create(
        model='tiny', messages=QUESTION, max_tokens=30, temperature=0
    )
    assert found.choices[0].message.content == language_model().chat('Why?', max_new_tokens=30)
    assert found.choices[0].finish_reason in ('length', 'stop')
    assert found.choices[0].logprobs is None
    assert found.usage.prompt_tokens == len(language_model().encode_prompt('Why?'))
    assert found.usage.completion_tokens == 30


def test_a_stream_says_the_same_in_pieces(client):
    how = dict(model='tiny', messages=QUESTION, max_completion_tokens=30, temperature=0)
    whole = client.chat.completions.create(**how).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**how, stream=True, stream_options={'include_usage': True})
    )
    *pieces, usage = chunks
    assert len(pieces) > 2
    assert pieces[0].choices[0].delta.role == 'assistant'
    assert ''.join(c.choices[0].delta.content or '' for c in pieces).strip() == whole
    assert [c.choices[0].finish_reason for c in pieces][-1] == 'length'
    assert usage.choices == [] and usage.usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_each_model_answers_under_its_name(client):
    assert [model.id for model in client.models.list().data] == ['tiny', 'base']
    answers = [
        client.chat.completions.create(model=name, messages=QUESTION, max_tokens=20, temperature=0)
        .choices[0]
        .message.content
        for name in ('tiny', 'base')
    ]
    base = language_model().base()
    assert answers == [m.chat('Why?', max_new_tokens=20) for m in (language_model(), base)]
    assert answers[0] != answers[1]
    with pytest.raises(openai.NotFoundError, match=r"no model 'big'; available models: tiny, base"):
        client.chat.completions.create(model='big', messages=QUESTION)


def test_a_text_goes_on_with_log_probabilities(client):
    found = client.completions.create(
        model='tiny', prompt='Once', max_tokens=6, temperature=0, logprobs=3
    )
    (choice,) = found.choices
    told, engine = choice.logprobs, language_model()
    tokens = engine.encode_text('Once')
    count = found.usage.completion_tokens
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == count > 2
    assert ''.join(told.tokens) == choice.text
    assert all(value <= 0 for value in told.token_logprobs)
    assert all(1 <= len(others) <= 3 for others in told.top_logprobs)
    assert told.text_offset[0] == 0 and sorted(told.text_offset) == told.text_offset
    assert found.usage.prompt_tokens == len(tokens)


def test_log_probabilities_of_a_chat(client):
    found = client.chat.completions.create(
        model='tiny',
        messages=QUESTION,
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = found.choices[0].logprobs.content
    assert len(content) == 5 and all(len(token.top_logprobs) == 2 for token in content)
    for token in content:
        # The most probable token was chosen.
        np.testing.assert_allclose(token.logprob, token.top_logprobs[0].logprob)
        assert token.logprob > token.top_logprobs[1].logprob


def test_several_texts_and_seeds(client):
    how = dict(model='tiny', prompt=['Once', 'Twice'], max_tokens=12, n=2)
    texts = [[c.text for c in client.completions.create(**how, seed=s).choices] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len({*texts[0]}) == 4


def test_a_stop_ends_a_text(client):
    how = dict(model='tiny', prompt='What', max_tokens=40, temperature=0)
    whole = client.completions.create(**how).choices[0].text
    stop = whole[len(whole) // 2 :][:2]
    assert len(stop) == 2
    found = client.completions.create(**how, stop=[stop, 'never']).choices[0]
    assert (found.text, found.finish_reason) == (whole[: whole.index(stop)], 'stop')
    pieces = client.completions.create(**how, stop=stop, stream=True)
    assert ''.join(chunk.choices[0].text for chunk in pieces) == found.text


@pytest.mark.parametrize(
    'change, status, message',
    [
        ({'temperature': -1}, 422, 'temperature: Input should be greater than or equal to 0.'),
        ({'frequency_penalty': 0.5}, 422, 'frequency_penalty: Input should be 0.'),
        ({'tools': []}, 422, 'tools: Extra inputs are not permitted.'),
        ({'messages': []}, 422, 'messages: List should have at least 1 item'),
        ({'top_logprobs': 2}, 422, 'top_logprobs needs logprobs: true'),
        (
            {'messages': [{'role': 'system', 'content': 'a'}, *QUESTION]},
            422,
            "Template 'chatml' does not support messages of role 'system'",
        ),
        (
            {'messages': [{'role': 'user', 'content': 'x' * 2100}]},
            413,
            'exceed the context length of ',
        ),
        (
            {'user': 'x' * (MAX_BODY_BYTES + 1)},
            413,
            f'The body of a request may have at most {MAX_BODY_BYTES:,} bytes.',
        ),
        ({'model': 'big'}, 404, "There is no model 'big'"),
    ],
)
def test_what_is_refused(address, change, status, message):
    body = {'model': 'tiny', 'messages': QUESTION, 'max_tokens': 5} | change
    found = httpx.post(f'{address}/v1/chat/completions', json=body)
    assert found.status_code == status
    assert message in found.json()['error']['message']
    assert soon_idle(address)


def test_a_body_that_is_no_json(address):
    found = httpx.post(f'{address}/v1/completions', content=b'{"model"')
    assert found.status_code == 422 and 'error' in found.json()


def test_a_large_body_without_its_length(address):
    def chunks():
        for _ in range(MAX_BODY_BYTES // 2**16 + 2):
            yield b'x' * 2**16

    found = httpx.post(f'{address}/v1/completions', content=chunks())
    assert found.status_code == 413


@pytest.mark.parametrize('stream', [True, False])
def test_no_work_for_a_client_that_is_gone(address, stream):
    body = {'model': 'tiny', 'prompt': 'Once', 'max_tokens': 400, 'stream': stream, 'n': 3}

    async def go_away():
        path = f'{address}/v1/completions'
        client = httpx.AsyncClient(timeout=60)
        async with client, client.stream('POST', path, json=body) as response:
            async for _ in response.aiter_lines():
                break

    async def run():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if stream else 0.3):
                await go_away()

    asyncio.run(run())
    assert soon_idle(address, 3.0)


def test_many_clients_at_once(address):
    """Each client gets the answer that it would get alone."""
    model = language_model()
    prompts = [f'Once {i}' for i in range(24)]
    expected = {}
    for prompt in prompts[:6]:
        asked = {'model': 'tiny', 'prompt': prompt, 'max_tokens': 20, 'temperature': 0}
        expected[prompt] = httpx.post(f'{address}/v1/completions', json=asked, timeout=60).json()

    def ask(prompt):
        asked = {'model': 'tiny', 'prompt': prompt, 'max_tokens': 20, 'temperature': 0}
        return httpx.post(f'{address}/v1/completions', json=asked, timeout=60).json()

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = dict(zip(prompts, pool.map(ask, prompts), strict=True))
    for prompt, answer in expected.items():
        assert found[prompt]['choices'] == answer['choices']
    assert all(len(answer['choices'][0]['text']) > 0 for answer in found.values())
    assert model.name == 'tiny' and soon_idle(address)


def test_a_key():
    with serve_in_thread(api_key='secret') as address:
        body = {'model': 'tiny', 'prompt': 'Once', 'max_tokens': 2}
        for headers in ({}, {'Authorization': 'Bearer wrong'}):
            found = httpx.post(f'{address}/v1/completions', json=body, headers=headers)
            assert found.status_code == 401
        headers = {'Authorization': 'Bearer secret'}
        found = httpx.post(f'{address}/v1/completions', json=body, headers=headers, timeout=60)
        assert found.status_code == 200
        assert httpx.get(f'{address}/health').status_code == 200


def test_too_many_wait_and_time_is_out(monkeypatch):
    def slow_step(engine: Engine) -> list[RequestOutput]:
        time.sleep(0.6)  # Also an answer that ends early takes too long.
        return step(engine)

    step = Engine.step
    monkeypatch.setattr(Engine, 'step', slow_step)
    with serve_in_thread(batch_size=1, max_waiting=0, timeout_s=0.5) as address:
        body = {'model': 'tiny', 'prompt': 'Once', 'max_tokens': 480}
        found = httpx.post(f'{address}/v1/completions', json=body | {'n': 4}, timeout=60)
        assert found.status_code == 429
        found = httpx.post(f'{address}/v1/completions', json=body, timeout=60)
        assert found.status_code == 504
        assert 'more than 0.5 seconds' in found.json()['error']['message']
        lines = httpx.post(
            f'{address}/v1/completions', json=body | {'stream': True}, timeout=60
        ).text.splitlines()
        assert json.loads(lines[-4].removeprefix('data: '))['error']['code'] == 504
        assert soon_idle(address)


def test_after_a_failure_the_next_request_is_answered(monkeypatch, capfd):
    with serve_in_thread() as address:
        body = {'model': 'tiny', 'prompt': 'Once', 'max_tokens': 4, 'temperature': 0}
        step = Engine.step
        monkeypatch.setattr(Engine, 'step', lambda engine: 1 / 0)
        assert httpx.post(f'{address}/v1/completions', json=body, timeout=60).status_code == 500
        monkeypatch.setattr(Engine, 'step', step)
        assert httpx.post(f'{address}/v1/completions', json=body, timeout=60).status_code == 200
    assert 'ZeroDivisionError' in capfd.readouterr().err

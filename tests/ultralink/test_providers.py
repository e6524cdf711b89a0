"""Kinds of endpoints, limits that hold, and counts that equal those of the endpoint."""

import asyncio
import collections
import itertools
import json
import sqlite3

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm import batch, limits, responses
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest, Reply
from malora_jax.ultralink.llm.endpoint import Endpoint
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.llm.request_format import EndpointSettings
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.language_identification import identify_language
from tests.helpers.openai_stub import FailurePlan, document, serve, serve_stub
from tests.helpers.provider_stubs import (
    PRICES,
    BatchProvider,
    Gateway,
    MistralProvider,
    Provider,
    ReasoningProvider,
    ThinkingProvider,
)
from tests.ultralink.helpers import WordCounter, contents, read_rows, run, write_rows

CONCURRENCY = 32


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    monkeypatch.setattr(responses, '_FIRST_WAIT_S', 0.01)
    monkeypatch.setattr(batch, '_QUIET_S', 0.1)
    monkeypatch.setattr(batch, '_POLL_S', 0.05)
    identify_language('Its model is loaded here, which takes longer than requests may.')


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / 'prices.toml'
    path.write_text(PRICES)
    return path


def answer(body) -> str:
    """Answer all other prompts than those of dialogues."""
    return 'Because ' * 5


def provider(kind, **plan):
    return kind(FailurePlan(**plan), answer)


def dialogues(home, stub, count=20, name='out', token_limit=0, **settings):
    """Make dialogues, and return the manifest and the model with its counts."""
    languages = itertools.cycle(LANGUAGES)
    rows = [
        {**document(language, i, 4), 'id': str(i), 'language': language}
        for i, language in zip(range(count), languages, strict=False)
    ]
    source = write_rows(home / 'segments.jsonl', rows)

    async def main():
        choice = ModelChoice(
            'm',
            home / f'{name}.sqlite',
            CONCURRENCY,
            stub.address,
            token_limit=token_limit,
            endpoint=EndpointSettings(**settings),
        )
        async with open_model(choice) as model:
            given = StageRun(
                DialoguesConfig(),
                [source],
                home / name,
                model=model,
                token_counter=WordCounter(),
                concurrency=CONCURRENCY,
                shard_items=5,
            )
            return await STAGES['dialogues'].run(given), model

    return asyncio.run(main())


def complete(stub, *requests, **settings):
    """Send requests at the same time, and return the replies and errors, and the endpoint."""

    async def main():
        model = Endpoint(
            'm',
            stub.address,
            timeout_s=10.0,
            token_limit=0,
            tokens_used=0,
            settings=EndpointSettings(**settings),
        )
        try:
            outcomes = await asyncio.gather(*map(model.complete, requests), return_exceptions=True)
        finally:
            await model.close()
        return outcomes, model

    return asyncio.run(main())


def request(number=0, max_tokens=100):
    return ModelRequest(
        'some', (ChatMessage('user', f'Why {number}?'),), ChatSampling(max_tokens), number
    )


def assert_counts_equal(meter, stub):
    """Check our counts of requests, tokens and cost against the stub's."""
    usage = meter.usage
    assert meter.requests == stub.sent
    assert [usage.prompt, usage.completion, usage.cached] == stub.billed[1:]
    assert usage.cost('m', meter._prices) == pytest.approx(stub.cost)


CONTENT = {'truncated': 0.04, 'wrong_language': 0.04, 'cites': 0.03, 'malformed': 0.02}
SOFT = {'error': 0.02, 'cut': 0.02, 'broken': 0.02}


@pytest.mark.parametrize(
    'make, settings',
    [
        (lambda: provider(ReasoningProvider), {'preset': 'openai_reasoning'}),
        (lambda: provider(ThinkingProvider, rates=CONTENT), {}),
        (lambda: provider(ThinkingProvider, rates=CONTENT), {'preset': 'no_thinking'}),
        (lambda: provider(MistralProvider, rates=CONTENT), {'preset': 'mistral'}),
        (
            lambda: Gateway(FailurePlan({**CONTENT, 'rate_limit': 0.05}), answer, soft_rates=SOFT),
            {'preset': 'gateway'},
        ),
    ],
)
def test_each_kind_runs_to_the_end_with_the_stubs_counts(tmp_path, prices, make, settings):
    with serve(make()) as stub:
        found, model = dialogues(tmp_path, stub, prices=prices, **settings)
    assert found.complete and found.total.items == 20
    assert found.total.kept >= 15
    assert_counts_equal(model._meter, stub)
    with sqlite3.connect(tmp_path / 'out.sqlite') as connection:
        texts = [text for [text] in connection.execute('SELECT text FROM replies')]
    assert not any('think>' in text or 'error' in text for text in texts)
    # The cache has the same tokens by model as the run.
    with sqlite3.connect(tmp_path / 'out.sqlite') as connection:
        [row] = connection.execute(
            'SELECT model, SUM(prompt_tokens), SUM(tokens - prompt_tokens), SUM(cached_tokens) '
            'FROM replies GROUP BY model'
        ).fetchall()
    assert row == ('m', *stub.billed[1:])
    if isinstance(stub, Gateway):
        assert all(stub.failure_counts[name] for name in SOFT), stub.failure_counts
        kinds = {'error with status 200': 'error', 'status 429': 'rate_limit'}
        for kind, name in kinds.items():
            assert model._meter.errors[kind] == stub.failure_counts[name]
        lost = stub.failure_counts['cut'] + stub.failure_counts['broken']
        assert model._meter.errors['unreadable'] == lost
    if isinstance(stub, ReasoningProvider):
        # Providers find the document in their cache from the second request about it on.
        assert stub.billed[3] > 0.5 * stub.billed[1]


def test_thoughts_are_removed_and_can_be_turned_off(tmp_path):
    with serve(provider(ThinkingProvider)) as stub:
        dialogues(tmp_path, stub, 5, 'thinking')
    with serve(provider(ThinkingProvider)) as stub:
        dialogues(tmp_path, stub, 5, 'quiet', extra_body='{"top_k": 3}', preset='no_thinking')
    [body, *_] = stub.requests.values()
    assert body['chat_template_kwargs'] == {'enable_thinking': False} and body['top_k'] == 3
    # Another format of requests gives other replies, so the manifest names it.
    manifest = json.loads((tmp_path / 'quiet' / 'manifest.json').read_text())
    assert manifest['settings']['llm'].startswith('m {"chat_template_kwargs"')


def test_a_model_that_only_thinks_is_refused_after_a_few_replies(tmp_path):
    with serve(provider(ThinkingProvider, latency_s=0.02)) as stub:
        stub.max_tokens = 10
        with pytest.raises(UserError, match=r"'m' only reasons: its first 5 replies end before"):
            dialogues(tmp_path, stub, 200)
    # The requests in flight wait for the first answer.
    assert stub.billed[0] == 5
    # What was paid for is cached.
    with sqlite3.connect(tmp_path / 'out.sqlite') as connection:
        replies = connection.execute('SELECT text, finish_reason FROM replies').fetchall()
    assert replies == [('', 'length')] * stub.billed[0]


@pytest.mark.parametrize(
    'kind, message',
    [
        (ReasoningProvider, r"status 400: Unsupported parameter: 'max_tokens' .* --preset"),
        (MistralProvider, r'status 422: body\.seed: Extra inputs are not permitted --preset'),
    ],
)
def test_a_parameter_that_is_rejected_is_named(kind, message):
    with serve(provider(kind)) as stub:
        [[error], _] = complete(stub, request())
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=message):
        raise error


def test_parameters_and_headers_that_the_user_chooses(monkeypatch):
    monkeypatch.setenv('OTHER_KEY', 'sk-other')
    names = {'max_tokens': 'max_completion_tokens', 'top_p': None}
    with serve_stub() as stub:
        [replies, _] = complete(
            stub,
            request(),
            parameter_names=json.dumps(names),
            extra_body='{"user": "me"}',
            extra_headers='{"X-Project": "p"}',
            api_key_variable='OTHER_KEY',
        )
    [body] = stub.requests.values()
    assert replies[0].text == 'Yes.'
    assert body == {
        'model': 'm',
        'messages': [{'role': 'user', 'content': 'Why 0?'}],
        'max_completion_tokens': 100,
        'temperature': 1.0,
        'seed': request().sampling_seed,
        'user': 'me',
    }
    assert stub.headers['Authorization'] == 'Bearer sk-other'
    assert {name.lower(): value for name, value in stub.headers.items()}['x-project'] == 'p'


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'preset': 'mistrall'}, 'endpoint.preset'),
        ({'parameter_names': '{"max_token": null}'}, 'did you mean max_tokens'),
        ({'parameter_names': '{"seed": 1}'}, '--parameter_names: seed is 1'),
        ({'extra_body': '[1]'}, '--extra_body'),
        ({'extra_body': '{"a'}, '--extra_body is not valid JSON'),
        ({'extra_headers': '{"a": 1}'}, '--extra_headers: a is 1'),
        ({'price_limit': 1.0}, '--price_limit needs --prices'),
        ({'requests_per_minute': -1}, 'requests_per_minute'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        EndpointSettings(**settings)


@pytest.mark.parametrize(
    'status, error',
    [
        (429, {'message': 'You exceeded your quota.', 'code': 'insufficient_quota'}),
        (400, {'message': 'Limit reached.', 'code': 'billing_hard_limit_reached'}),
        (402, {'message': 'Pay first.', 'code': None}),
        (200, {'message': 'Insufficient credits.', 'code': 402}),
    ],
)
def test_a_quota_error_is_reported_at_once(status, error):
    fixed = (status, 'application/json', json.dumps({'error': error}))
    with serve_stub(FailurePlan(fixed_response=fixed)) as stub:
        [[found], _] = complete(stub, request())
    assert isinstance(found, OSError) and error['message'] in str(found)
    assert sum(stub.attempt_counts.values()) == 1


def test_responses_that_are_never_json_stop_the_run_and_are_not_cached(tmp_path):
    fixed = FailurePlan(fixed_response=(200, 'application/json', '{"choices": [{'))
    with (
        serve_stub(fixed) as stub,
        pytest.raises(OSError, match='sends responses that are no valid JSON'),
    ):
        dialogues(tmp_path, stub)
    assert not (tmp_path / 'out.sqlite').exists()


# Limits.


@pytest.mark.parametrize('limit', [{'token_limit': 60_000}, {'price_limit': 0.15}])
def test_a_spending_limit_holds_and_the_run_goes_on_with_a_higher_one(tmp_path, prices, limit):
    """With 32 requests in flight, with retries, and with lost responses that are paid for."""

    def gateway():
        plan = FailurePlan({'rate_limit': 0.1, 'error': 0.1}, latency_s=0.02)
        return Gateway(plan, answer, soft_rates={'cut': 0.05, 'error': 0.05})

    with serve(gateway()) as stub:
        with pytest.raises(
            UserError, match=r'^The next request might exceed --(token|price)-limit'
        ):
            dialogues(tmp_path, stub, 40, prices=prices, **limit)
        tokens = stub.billed[1] + stub.billed[2]
        spent, most = (
            (tokens, 60_000) if 'token_limit' in limit else (stub.cost, limit['price_limit'])
        )
        assert 0.6 * most < spent <= most
        # A response that is lost just before the limit is reached is requested again.
        once = {key: count for key, count in stub.answer_counts.items() if count}
        dialogues(tmp_path, stub, 40, prices=prices)
        assert {key: stub.answer_counts[key] for key in once} == once
        assert set(stub.answer_counts.values()) == {1}
    with serve(gateway()) as stub:
        dialogues(tmp_path, stub, 40, 'free', prices=prices)
    assert contents(tmp_path / 'out') == contents(tmp_path / 'free')


@pytest.mark.parametrize('limit', ['requests_per_minute', 'tokens_per_minute'])
def test_limits_per_minute_hold_in_each_window(monkeypatch, limit):
    """A minute is two seconds here, and there is one second for latency, as with real minutes."""
    monkeypatch.setattr(limits, '_WINDOW_S', 3.0)
    monkeypatch.setattr(limits, '_LOOK_S', 0.005)
    requests = [request(number) for number in range(60)]
    most = {'requests_per_minute': 20, 'tokens_per_minute': 1000}[limit]
    plan = FailurePlan({'rate_limit': 0.1, 'error': 0.1}, latency_s=0.05)
    with serve(Provider(plan, answer)) as stub:
        [replies, model] = complete(stub, *requests, **{limit: most})
    assert all(isinstance(reply, Reply) for reply in replies)
    assert model.meter.requests == stub.sent > 60  # With retries.
    for start, _ in stub.arrivals:
        amounts = [
            1 if limit == 'requests_per_minute' else tokens
            for time, tokens in stub.arrivals
            if start <= time < start + 2.0
        ]
        assert sum(amounts) <= most


def test_a_price_limit_needs_the_prices_of_the_model(tmp_path, prices):
    prices.write_text(PRICES.replace('[m]', '[other]'))
    with (
        serve_stub() as stub,
        pytest.raises(UserError, match="has no prices of 'm', only of 'other'"),
    ):
        dialogues(tmp_path, stub, prices=prices, price_limit=1.0)


# Batches.


def test_batches_give_the_bytes_of_the_online_mode(tmp_path, prices):
    with serve(provider(BatchProvider, rates=CONTENT)) as stub:
        dialogues(tmp_path, stub, name='online')
        online = collections.Counter(stub.answer_counts)
    batches = BatchProvider(FailurePlan(CONTENT), answer, fail_rate=0.1, lose_rate=0.3)
    with serve(batches) as stub:
        found, model = dialogues(tmp_path, stub, name='batches', batch=True, prices=prices)
        assert stub.answer_counts == online
        assert_counts_equal(model._meter, stub)
        assert model._meter.errors['status 500'] == stub.sent - stub.billed[0] > 0
        assert 1 < len(stub.batches) < 60
    assert contents(tmp_path / 'online') == contents(tmp_path / 'batches')
    assert len(read_rows(tmp_path / 'batches')) == found.total.rows
    with sqlite3.connect(tmp_path / 'batches.sqlite') as connection:
        assert connection.execute('SELECT * FROM batches').fetchall() == []


# Command line.


@pytest.mark.slow
def test_a_command_shows_tokens_errors_and_cost(tmp_path, prices):
    problems = ''.join(f'Combien font {number} + 2 ?\t{number + 2}\n' for number in range(10))
    (tmp_path / 'mgsm_fr.tsv').write_text(problems, 'utf-8')
    # A progress bar appears after a second.
    plan = FailurePlan({'rate_limit': 0.3}, latency_s=2.4)
    with serve(MistralProvider(plan, answer)) as stub:
        command = [
            *('mgsm', '--language=fr', f'--input={tmp_path}/mgsm_fr.tsv', '--llm=m'),
            *(f'--base-url={stub.address}', f'--output={tmp_path}/out', f'--prices={prices}'),
        ]
        rejected = run(*command)
        assert rejected.returncode == 2
        assert 'status 422: body.seed: Extra inputs are not permitted' in rejected.stderr
        rejected_requests, stub.sent = stub.sent, 0
        done = run(*command, '--preset=mistral')
    assert rejected_requests <= 10 and done.returncode == 0, done.stderr
    _, prompt, completion, _ = stub.billed
    failed = stub.failure_counts['rate_limit']
    tokens = f'{prompt:,} prompt tokens, {completion:,} completion tokens, ${stub.cost:.4f}\n'
    assert (
        f'm, this run: {stub.sent} requests ({failed} failed: {failed} status 429), {tokens}'
        in (done.stderr)
    )
    assert f'm, all runs in the cache: {tokens}' in done.stderr
    errors = f'{failed} error{"s" if failed > 1 else ""}'
    progress = f'mgsm: item 10, {prompt + completion:,} tokens, {errors}, ${stub.cost:.2f}\n'
    assert progress in done.stderr

"""The batch API: batches that fail or expire, and a run that another one has interrupted."""

import asyncio
import dataclasses
import json
import time

import pytest
from aiohttp import web

from malora_jax.errors import UserError
from malora_jax.ultralink.llm import batch
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.llm.request_format import EndpointSettings
from tests.helpers.openai_stub import FailurePlan, serve, serve_stub
from tests.helpers.provider_stubs import BatchProvider

REQUESTS = [
    ModelRequest('some', (ChatMessage('user', f'Why {number}?'),), ChatSampling(100))
    for number in range(12)
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'any')
    monkeypatch.setattr(batch, '_QUIET_S', 0.05)
    monkeypatch.setattr(batch, '_POLL_S', 0.05)


def complete(path, address, requests, wait_s=None, **choice):
    """Send requests, and return the texts; None if they do not arrive within the time."""

    async def main():
        how = ModelChoice(
            'm', path / 'c.sqlite', 64, address, endpoint=EndpointSettings(batch=True), **choice
        )
        async with open_model(how) as model:
            waiting = asyncio.gather(*map(model.complete, requests))
            try:
                return [reply.text for reply in await asyncio.wait_for(waiting, wait_s)]
            except TimeoutError:
                return None

    return asyncio.run(main())


def say(body):
    return body['messages'][-1]['content'].replace('Why', 'Because')


TEXTS = [f'Because {number}?' for number in range(12)]


def test_requests_share_a_batch_up_to_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, '_MAX_REQUESTS', 5)
    with serve(BatchProvider(FailurePlan(), say)) as stub:
        assert complete(tmp_path, stub.address, REQUESTS) == TEXTS
    sizes = [stub.files[f'{name}-output'].count(b'\n') for name in stub.batches]
    assert sorted(sizes) == [2, 5, 5]


def test_a_run_collects_the_batch_of_an_interrupted_run(tmp_path):
    with serve(BatchProvider(FailurePlan(), say, seconds=1.0)) as stub:
        assert complete(tmp_path, stub.address, REQUESTS[:8], wait_s=0.6) is None
        start = time.monotonic()
        assert complete(tmp_path, stub.address, REQUESTS) == TEXTS
        assert time.monotonic() - start > 1.0
    # The second batch has only the requests that the first one had not.
    sizes = [stub.files[f'{name}-output'].count(b'\n') for name in stub.batches]
    assert sizes == [8, 4] and set(stub.answer_counts.values()) == {1}


def test_a_token_limit_holds_with_batches(tmp_path):
    with serve(BatchProvider(FailurePlan(), lambda body: 'y' * 300)) as stub:
        with pytest.raises(UserError, match=r'might exceed --token-limit=700; \d+ tokens'):
            complete(tmp_path, stub.address, REQUESTS, token_limit=700)
        assert 500 < sum(stub.billed[1:3]) <= 700
        assert complete(tmp_path, stub.address, REQUESTS) == ['y' * 300] * 12
    assert set(stub.answer_counts.values()) == {1}


@dataclasses.dataclass
class FaultyBatches(BatchProvider):
    """A batch API whose first batch has another state than completed.

    Attributes:
        first: Fields of the state of the first batch.
    """

    first: dict = dataclasses.field(default_factory=dict)

    def _state(self, name):
        state = super()._state(name)
        if name == 'batch-0' and state['status'] == 'completed':
            state |= self.first
        return state


def test_what_an_expired_batch_has_not_processed_is_requested_again(tmp_path):
    first = {'status': 'expired'}
    with serve(FaultyBatches(FailurePlan(), say, seconds=0.5, first=first)) as stub:
        done = asyncio.run(_expire_and_complete(stub, tmp_path))
    assert done == TEXTS
    sizes = [stub.files[f'{name}-output'].count(b'\n') for name in stub.batches]
    assert sizes == [7, 5]


async def _expire_and_complete(stub, path):
    """Complete the requests while the first batch loses the last five of its replies."""
    how = ModelChoice(
        'm', path / 'c.sqlite', 64, stub.address, endpoint=EndpointSettings(batch=True)
    )
    async with open_model(how) as model:
        waiting = asyncio.ensure_future(asyncio.gather(*map(model.complete, REQUESTS)))
        while 'batch-0' not in stub.batches:
            await asyncio.sleep(0.01)
        lines = stub.files['batch-0-output'].split(b'\n')
        stub.files['batch-0-output'] = b'\n'.join(lines[:7]) + b'\n'
        return [reply.text for reply in await waiting]


@pytest.mark.parametrize(
    'code, message',
    [
        ('token_limit_exceeded', r'Enqueued token limit\. A smaller --concurrency'),
        ('billing_hard_limit_reached', r'Enqueued token limit\.$'),
    ],
)
def test_a_batch_that_is_not_accepted_is_one_line(tmp_path, code, message):
    errors = {'object': 'list', 'data': [{'code': code, 'message': 'Enqueued token limit.'}]}
    first = {'status': 'failed', 'errors': errors, 'output_file_id': None}
    with serve(FaultyBatches(FailurePlan(), say, first=first)) as stub:
        with pytest.raises(OSError, match=rf'rejects the batch batch-0: {message}'):
            complete(tmp_path, stub.address, REQUESTS)
        # The record of the batch is gone, so that a repeated command submits another one.
        assert complete(tmp_path, stub.address, REQUESTS) == TEXTS


@dataclasses.dataclass
class TruncatedDownloads(BatchProvider):
    """A batch API whose first download of each file is truncated."""

    downloads: set = dataclasses.field(default_factory=set)

    async def download(self, request):
        name = request.match_info['id']
        content = self.files[name]
        if name not in self.downloads:
            self.downloads.add(name)
            content = content[: len(content) - 20]
        return web.Response(body=content)


def test_a_truncated_download_is_repeated(tmp_path):
    with serve(TruncatedDownloads(FailurePlan(), say)) as stub:
        assert complete(tmp_path, stub.address, REQUESTS) == TEXTS
    assert len(stub.batches) == 1


def test_an_endpoint_without_batches_is_one_line(tmp_path):
    with serve_stub() as stub, pytest.raises(UserError, match='answers with status 404'):
        complete(tmp_path, stub.address, REQUESTS)


def test_lines_have_the_bodies_of_single_requests(tmp_path):
    with serve(BatchProvider(FailurePlan(), say)) as stub:
        complete(tmp_path, stub.address, REQUESTS[:1])
        [line] = map(json.loads, stub.files['file-0'].decode().splitlines())
    assert line['method'] == 'POST' and line['url'] == '/v1/chat/completions'
    assert line['custom_id'] == REQUESTS[0].digest.hex()
    assert line['body'] == {
        'model': 'm',
        'messages': [{'role': 'user', 'content': 'Why 0?'}],
        'max_tokens': 100,
        'temperature': 1.0,
        'top_p': 1.0,
        'seed': REQUESTS[0].sampling_seed,
    }


@dataclasses.dataclass
class UnreachableStates(BatchProvider):
    """A batch API that does not give the states of batches, as long as it is down."""

    is_down: bool = True

    async def retrieve(self, request):
        return web.Response(status=503) if self.is_down else await super().retrieve(request)


def test_a_batch_whose_state_is_unknown_is_collected_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, '_RETRIES', 0)
    with serve(UnreachableStates(FailurePlan(), say)) as stub:
        with pytest.raises(OSError, match='answers with status 503'):
            complete(tmp_path, stub.address, REQUESTS)
        stub.is_down = False
        assert complete(tmp_path, stub.address, REQUESTS) == TEXTS
    assert len(stub.batches) == 1 and set(stub.answer_counts.values()) == {1}

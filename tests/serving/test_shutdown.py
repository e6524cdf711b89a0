"""Server shutdown: each stream ends with its text or an error, and the process with status 0."""

import concurrent.futures
import json
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.helpers.servers import is_error, post_chat, serve_in_process

pytestmark = pytest.mark.slow


def stream(address: str, tokens: int) -> tuple[int, list[str]]:
    """Stream a completion, and return the status and the events."""
    body = {'model': 'tiny', 'prompt': 'x', 'max_tokens': tokens, 'stream': True}
    found = httpx.post(f'{address}/v1/completions', json=body, timeout=120)
    return found.status_code, [x.removeprefix('data: ') for x in found.text.splitlines() if x]


def wait_for_work(address: str, count: int) -> None:
    until = time.monotonic() + 60
    while (found := httpx.get(f'{address}/health').json()['open_requests']) < count:
        assert time.monotonic() < until, found
        time.sleep(0.02)


def test_what_was_taken_is_finished(tmp_path):
    """The server accepts no new requests meanwhile."""
    with serve_in_process('--grace=100', '--delay=0.1') as (server, address):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = [pool.submit(stream, address, 80) for _ in range(3)]
            whole = pool.submit(post_chat, address, max_tokens=80)
            wait_for_work(address, 4)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            refused = post_chat(address)
            assert refused.status_code == 503 and is_error(503, refused.content)
            assert httpx.get(f'{address}/health').status_code == 503
            for text in texts:
                status, events = text.result()
                assert status == 200 and events[-1] == '[DONE]'
                assert json.loads(events[-2])['choices'][0]['finish_reason'] == 'length'
            assert whole.result().json()['usage']['completion_tokens'] == 80
        assert server.wait(30) == 0


@pytest.mark.parametrize('arguments, signals', [(['--grace=0.5'], 1), (['--grace=60'], 5)])
def test_what_is_not_finished_in_time_ends_with_an_error(tmp_path, arguments, signals):
    """A second signal ends the grace period."""
    log = tmp_path / 'log'
    with (
        log.open('w') as file,
        serve_in_process(*arguments, '--delay=0.2', log=file) as (server, address),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        texts = [pool.submit(stream, address, 400) for _ in range(6)]
        whole = pool.submit(post_chat, address, max_tokens=400)
        wait_for_work(address, 7)
        start = time.monotonic()
        for number in range(signals):
            server.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
            time.sleep(0.05)
        for text in texts:
            status, events = text.result()
            assert status == 200 and events[-1] == '[DONE]'
            assert json.loads(events[-2])['error']['code'] == 503
        assert whole.result().status_code == 503 and is_error(503, whole.result().content)
        assert server.wait(30) == 0
        assert time.monotonic() - start < 30
    assert 'Traceback' not in log.read_text()


def test_a_client_that_does_not_read_holds_up_nothing(tmp_path):
    with serve_in_process('--grace=0.5', '--delay=0.05') as (server, address):
        client = httpx.Client(timeout=60)
        body = {'model': 'tiny', 'prompt': 'x', 'max_tokens': 400, 'stream': True}
        with client.stream('POST', f'{address}/v1/completions', json=body) as response:
            assert response.status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


def test_no_workdir_is_named():
    found = subprocess.run(
        [sys.executable, '-m', 'experiments.serve', '--workdir='], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert found.stderr == '--workdir= has an empty name; it must name directories.\n'

"""Clients that stream from a server while another client attacks it.

`python -m tests.serving.hostile_client [MINUTES [MODEL]]` starts a server with the tiny model, or
with MODEL (a run, or a config such as configs/quickstart.py for its base model). 32
clients stream answers, one sends the attacks below in a loop, and one requests /health every 50 ms.
The script prints the number of answers and the latencies of /health with the attacks and, for a
quarter of the time, without. The exit status is 1 if a client saw an error or a changed answer, or
if the 99th percentile of the latency with attacks is 200 ms or more.
"""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import multiprocessing
import socket
import sys
import threading
import time

import httpx
import numpy as np

from tests.helpers.servers import post, post_chat, serve_in_process

CLIENTS, LIMIT_S = 32, 0.2
MIB = 2**20


def chat_body(content: str = 'x', **fields) -> bytes:
    messages = [{'role': 'user', 'content': content}]
    return json.dumps({'model': 'tiny', 'messages': messages, 'max_tokens': 2} | fields).encode()


def send_partial_body(address: str) -> None:
    """Send a part of a request body, and disconnect."""
    host, port = address.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n')
        connection.sendall(b'Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n')
        connection.sendall(b'{"model": "tiny", "prompt": "' + b'9' * MIB)


def drop_stream(address: str) -> None:
    """Disconnect from a stream after its first line, or after two seconds."""
    body = {'model': 'tiny', 'prompt': 'x', 'max_tokens': 200, 'stream': True}
    with httpx.stream('POST', f'{address}/v1/completions', json=body, timeout=2) as response:
        next(response.iter_lines())


def bodies() -> dict[str, bytes]:
    """Return the attacks that are a chat request's body, by name."""
    marks = {'objects': b'{},', 'strings': b'"",', 'numbers': b'1.5,', 'depth': b'['}
    return {
        'top_k of 2^31': chat_body(top_k=2**31, temperature=1),
        'seed of 2^64': chat_body(seed=2**64),
        'four stops of a million characters': chat_body(stop=['x' * 999_999 + c for c in 'abcd']),
        'four long stops': chat_body(stop=['x' * 999 + c for c in 'abcd'], max_tokens=100),
        '4 MB of digits': chat_body('9' * (4 * MIB - 200)),
        'digits that might fit': chat_body('9' * 20_000),
        '4 MB of backslashes': chat_body('\\' * (2 * MIB - 200)),
        'a surrogate': chat_body('\ud800'),
        'many messages': chat_body(messages=[{'role': 'user', 'content': ''}] * 90_000),
        'all alternatives': chat_body(n=16, logprobs=True, top_logprobs=20, max_tokens=50),
        **{
            f'4 MB of {name}': b'{"metadata": [' + mark * (4 * MIB // len(mark) - 10)
            for name, mark in marks.items()
        },
    }


def attack(
    address: str, stopped: threading.Event, counts: dict[str, int], found: list[str]
) -> None:
    attacks = {
        name: lambda body=body: post(address, body, seconds=2) for name, body in bodies().items()
    }
    attacks |= {
        'partial body': lambda: send_partial_body(address),
        'stream': lambda: drop_stream(address),
    }
    for name, send in itertools.cycle(attacks.items()):
        if stopped.is_set():
            return
        with contextlib.suppress(httpx.TransportError, ConnectionError):
            response = send()  # The client disconnects if the answer takes longer than two seconds.
            if response is not None and response.status_code >= 500:
                found.append(f'{name}: {response.text}')
        counts[name] = counts.get(name, 0) + 1


def stream(address: str, number: int, stopped: threading.Event, outcomes: list[str]) -> None:
    """Stream the answer to the same question repeatedly, and record errors and differences."""
    body = {'model': 'tiny', 'prompt': f'Once {number}', 'max_tokens': 40, 'seed': number}
    expected = None
    with httpx.Client(timeout=600) as client:
        while not stopped.is_set():
            response = client.post(f'{address}/v1/completions', json=body | {'stream': True})
            lines = [line for line in response.text.splitlines() if line]
            chunks = [json.loads(line.removeprefix('data: ')) for line in lines[:-1]]
            is_whole = lines[-1] == 'data: [DONE]' and all('choices' in chunk for chunk in chunks)
            text = ''.join(c['choices'][0]['text'] for c in chunks) if is_whole else response.text
            expected = expected or text
            outcomes.append('ok' if is_whole and text == expected else f'{number}: {response.text}')


def latencies(address: str, seconds: float) -> list[float]:
    """Return the latencies of /health in seconds, each on a new connection."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        connection = http.client.HTTPConnection(address.removeprefix('http://'), timeout=60)
        connection.request('GET', '/health')
        assert connection.getresponse().status == 200
        connection.close()
        found.append(time.monotonic() - start)
        time.sleep(0.05)
    return found


def describe(name: str, found: list[float]) -> None:
    p50, p99 = np.percentile(found, [50, 99])
    print(
        f'/health {name}: {len(found)} times, median {1000 * p50:.0f} ms, 99th percentile '
        f'{1000 * p99:.0f} ms, maximum {1000 * max(found):.0f} ms',
        flush=True,
    )


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    arguments = [f'--model={sys.argv[2]}'] if len(sys.argv) > 2 else []
    outcomes: list[str] = []
    counts: dict[str, int] = {}
    # A separate process, because the client threads would delay the measurement.
    spawn = multiprocessing.get_context('spawn')
    with (
        serve_in_process('--rows=8', *arguments, log=None) as (_, address),
        concurrent.futures.ProcessPoolExecutor(1, spawn) as prober,
    ):
        post_chat(address)
        stopped = threading.Event()
        threads = [
            threading.Thread(target=stream, args=(address, number, stopped, outcomes))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(10)  # Wait for compilation.
        describe('without attacks', prober.submit(latencies, address, 15 * minutes).result())
        threads.append(threading.Thread(target=attack, args=(address, stopped, counts, outcomes)))
        threads[-1].start()
        attacked = prober.submit(latencies, address, 45 * minutes).result()
        describe('with attacks', attacked)
        stopped.set()
        for thread in threads:
            thread.join()
        left = httpx.get(f'{address}/health').json()['open_requests']
    errors = [answer for answer in outcomes if answer != 'ok']
    print(f'{len(outcomes)} streams, {len(errors)} of them with an error or another text')
    print(f'{sum(counts.values())} attacks: {counts}; {left} requests are still open')
    for error in errors[:3]:
        print(error[:1000])
    return int(bool(errors) or bool(np.percentile(attacked, 99) >= LIMIT_S))


if __name__ == '__main__':
    sys.exit(main())

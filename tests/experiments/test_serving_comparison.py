"""Comparison of servers under load: it counts the tokens that servers report, in turns."""

import http.server
import json
import threading
import time

import pytest

from tests.helpers.fork_server import run_module


@pytest.fixture
def address():
    """A server that takes 20 ms for each answer, and reports 5 tokens."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            time.sleep(0.02)
            known = body['model'] == 'known' and body['temperature'] == 0
            self.send_response(200 if known else 404)
            self.end_headers()
            answer = {'usage': {'completion_tokens': 5}} if known else {'error': 'no such model'}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/v1'
    server.shutdown()


def run(*arguments):
    return run_module('experiments.peers.serving', *arguments)


def test_tokens_per_second_by_number_of_clients(address, tmp_path):
    output = tmp_path / 'found.json'
    servers = [f'--server={name}={address}#known' for name in ('first', 'second')]
    found = run(*servers, '--clients=1,4', '--turns=2', '--requests=4', f'--output={output}')
    assert found.returncode == 0, found.stderr
    rates = json.loads(output.read_text())
    assert rates.keys() == {'first', 'second'}
    for by_count in rates.values():
        assert {count: len(turns) for count, turns in by_count.items()} == {'1': 2, '4': 2}
        assert 50 < max(by_count['1']) <= 250  # 5 tokens in at least 20 ms.
        assert 1.5 * max(by_count['1']) < max(by_count['4']) <= 1000
    lines = found.stdout.splitlines()
    assert lines[-4] == '| tokens/s by clients | 1 | 4 |'
    assert [line.split(' | ')[0] for line in lines[-2:]] == ['| first', '| second']


@pytest.mark.parametrize(
    'server, message',
    [
        ('ours', '--server'),
        ('ours={}#other', 'no such model'),
        ('ours=http://127.0.0.1:1/v1#x', 'ours does not answer'),
    ],
)
def test_mistakes(address, server, message):
    found = run(f'--server={server.format(address)}')
    assert found.returncode != 0
    assert message in found.stderr.splitlines()[-1]

"""A server with a small model, in a thread or in a separate process."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading

import httpx
import uvicorn

from malora_jax.serving.app import make_app
from malora_jax.serving.server import uvicorn_config
from tests.helpers.language_model import language_model
from tests.helpers.paths import ROOT

QUESTION = [{'role': 'user', 'content': 'Why?'}]


@contextlib.contextmanager
def serve_in_thread(model=None, **settings):
    """Serve in a thread, and yield the address."""
    model = model or language_model()
    app = make_app({'tiny': model, 'base': model.base()}, **settings)
    listener = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn_config(app))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def serve_in_process(*arguments, log=subprocess.DEVNULL):
    """Start a `serve_tiny` process, and yield it and its address once its programs are compiled."""
    with subprocess.Popen(
        [sys.executable, '-m', 'tests.serving.serve_tiny', *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'},
    ) as server:
        try:
            assert server.stdout is not None
            address = re.search(r'http://\S+', server.stdout.readline())[0]
            post_chat(address, max_tokens=12, temperature=0.7)
            yield server, address
        finally:
            server.kill()


def post_chat(address: str, **fields) -> httpx.Response:
    body = {'model': 'tiny', 'messages': QUESTION, 'max_tokens': 5, 'temperature': 0} | fields
    return httpx.post(f'{address}/v1/chat/completions', json=body, timeout=120)


def post(address: str, body: bytes, seconds: float = 120.0) -> httpx.Response:
    """Return the response to a body that need not be JSON."""
    headers = {'Content-Type': 'application/json'}
    path = f'{address}/v1/chat/completions'
    return httpx.post(path, content=body, headers=headers, timeout=seconds)


def send_raw(address: str, data: bytes, seconds: float = 60.0) -> tuple[int, bytes]:
    """Write bytes into a socket, and return the status and body of the response."""
    host, port = address.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def is_error(status: int, body: bytes) -> bool:
    """Return whether a response is an error in OpenAI's format."""
    found = json.loads(body)
    error = found.get('error')
    return (
        found.keys() == {'error'}
        and error.keys() == {'message', 'type', 'param', 'code'}
        and isinstance(error['message'], str)
        and error['code'] == status >= 400
    )

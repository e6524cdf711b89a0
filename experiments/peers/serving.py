"""Compare the throughput of OpenAI-compatible servers under load, interleaved.

The servers run already, on the same cores; while one is measured, the others have no requests. Each
client sends one request after another, and each request asks for a greedy answer to a text of 20 to
40 words. Prints a table in Markdown: tokens of the answers per second, by number of clients.

Example:
    python -m experiments.peers.serving --clients=1,8,32 \
      --server='ours, base=http://127.0.0.1:8000/v1#smollm2-135m' \
      --server='vLLM, base=http://127.0.0.1:8001/v1#base'
"""

import concurrent.futures
import itertools
import json
import pathlib
import random
import time
import urllib.error
import urllib.request
from typing import NamedTuple

from absl import flags

from experiments import cli
from experiments.peers import throughput_table
from malora_jax import errors, files

_SERVERS = flags.DEFINE_multi_string(
    'server', None, 'Server to measure, as NAME=URL#MODEL; may be repeated.', required=True
)
_CLIENTS = flags.DEFINE_list('clients', ['1', '8', '32'], 'Numbers of clients to measure with.')
_REQUESTS = flags.DEFINE_integer(
    'requests', 3, 'Number of requests of each client in a round.', lower_bound=1
)
_NEW_TOKENS = flags.DEFINE_integer(
    'new_tokens', 24, 'Maximum number of tokens of an answer.', lower_bound=1
)
_TURNS = flags.DEFINE_integer(
    'turns', 3, 'Number of rounds, in each of which every server is measured once.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write the measurements into.')

_WORDS = (
    'river stone window garden letter winter market silver bridge forest candle mirror engine '
    'harbor island ladder meadow orange pencil rocket shadow ticket valley wallet yellow anchor'
)


class Server(NamedTuple):
    """Server to measure.

    Attributes:
        name: Name in the table.
        url: Base URL of its API.
        model: Name of the model in requests.
    """

    name: str
    url: str
    model: str


def main() -> None:
    """Measure all servers, and print the table.

    Raises:
        UserError: A flag cannot be read, or a server does not answer.
    """
    servers = [_parse_server(each) for each in _SERVERS.value]
    try:
        client_counts = [int(each) for each in _CLIENTS.value]
    except ValueError as error:
        raise errors.out_of_range('--clients', _CLIENTS.value, 'a list of integers') from error
    if min(client_counts, default=0) < 1:
        raise errors.out_of_range('--clients', _CLIENTS.value, 'a list of integers of at least 1')
    rates: dict[str, dict[int, list[float]]] = {
        server.name: {count: [] for count in client_counts} for server in servers
    }
    for turn in range(_TURNS.value + 1):
        for server, count in itertools.product(servers, client_counts):
            rate = _tokens_per_second(server, count, seed=turn)
            if turn:  # The first round is a warm-up, in which servers compile.
                rates[server.name][count].append(rate)
                print(
                    f'round {turn}: {server.name}, {count} clients: {rate:.1f} tokens/s', flush=True
                )
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, rates)
    print(throughput_table.format_table(rates))


def _parse_server(text: str) -> Server:
    name, _, address = text.partition('=')
    url, _, model = address.partition('#')
    if not (name and url and model):
        raise errors.out_of_range('--server', text, 'NAME=URL#MODEL')
    return Server(name, url.rstrip('/'), model)


def _tokens_per_second(server: Server, num_clients: int, seed: int) -> float:
    prompts = _prompts(num_clients * _REQUESTS.value, seed)
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(num_clients) as clients:
        num_tokens = sum(clients.map(lambda prompt: _complete(server, prompt), prompts))
    return num_tokens / (time.perf_counter() - began)


def _prompts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    prompts = []
    for _ in range(count):
        words = generator.choices(_WORDS.split(), k=generator.randint(20, 40))
        prompts.append(f'Write a story with these words: {" ".join(words)}. Once')
    return prompts


def _complete(server: Server, prompt: str) -> int:
    """Let the server continue a text; return the number of tokens of the answer."""
    body = {
        'model': server.model,
        'prompt': prompt,
        'max_tokens': _NEW_TOKENS.value,
        'temperature': 0,
    }
    request = urllib.request.Request(
        f'{server.url}/completions',
        json.dumps(body).encode(),
        {'Content-Type': 'application/json'},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)['usage']['completion_tokens']
    except urllib.error.HTTPError as error:
        raise errors.UserError(f'{server.name}: {error.read().decode(errors="replace")}') from error
    except OSError as error:
        raise errors.UserError(f'{server.name} does not answer: {error}.') from error


if __name__ == '__main__':
    cli.run_without_config(main)

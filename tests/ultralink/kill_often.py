"""Kill the stage `dialogues` repeatedly, and check that the outcome is unchanged.

`python -m tests.ultralink.kill_often [KILLS [SEED [SEGMENTS]]]` makes dialogues in the five
languages with an endpoint that fails, twice: once undisturbed, and once killed with SIGKILL at
random moments and restarted. It prints the progress at each kill, whether the output files are
bitwise equal, and the number of requests that were repeated although their answers were cached. The
exit status is 1 if files differ or requests were repeated.
"""

import asyncio
import hashlib
import itertools
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

from malora_jax.ultralink.dialogues import STAGE, DialoguesConfig
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.llm.request_format import EndpointSettings
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import FailurePlan, StubEndpoint, document, serve_stub
from tests.helpers.paths import ROOT
from tests.ultralink.helpers import WordCounter, contents, read_rows, write_rows

MODEL, CONCURRENCY, SHARD_ITEMS = 'm', 8, 5
RATES = {'rate_limit': 0.05, 'error': 0.02, 'truncated': 0.05, 'wrong_language': 0.05}
PLAN = FailurePlan(RATES, latency_s=0.05)


def make_dialogues(
    address: str, root: pathlib.Path, endpoint: EndpointSettings | None = None
) -> None:
    """Make the dialogues, in the process that will be killed."""
    settings = endpoint or EndpointSettings()
    choice = ModelChoice(MODEL, root / 'answers.sqlite', CONCURRENCY, address, endpoint=settings)

    async def main() -> None:
        async with open_model(choice) as model:
            given = StageRun(
                DialoguesConfig(),
                [root.parent / 'segments.jsonl'],
                root / 'out',
                model=model,
                token_counter=WordCounter(),
                concurrency=CONCURRENCY,
                shard_items=SHARD_ITEMS,
            )
            await STAGES[STAGE].run(given)

    asyncio.run(main())


def write_segments(root: pathlib.Path, count: int) -> None:
    """Write segments in all languages."""
    languages = itertools.cycle(LANGUAGES)
    rows = [segment(language, i) for i, language in zip(range(count), languages, strict=False)]
    write_rows(root / 'segments.jsonl', rows)


def segment(language: str, number: int) -> dict[str, str]:
    """Return a segment; some are dropped, because they are empty or fill the context."""
    row = {**document(language, number, 4), 'id': str(number), 'language': language}
    return {**row, 'text': row['text'] * {3: 0, 5: 40}.get(number % 7, 1)}


def start(
    stub: StubEndpoint, root: pathlib.Path, module: str = 'tests.ultralink.kill_often'
) -> subprocess.Popen:
    root.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, '-m', module, 'make', stub.address, root],
        cwd=ROOT,
        env=os.environ | {'OPENAI_API_KEY': 'any'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def cached_keys(root: pathlib.Path) -> set[bytes]:
    """Return the keys of the answers in the cache."""
    with sqlite3.connect(root / 'answers.sqlite') as connection:
        return {key for [key] in connection.execute('SELECT key FROM replies')}


def key_in_cache(address: str, body: dict) -> bytes:
    """Return the cache key of a request that the stub received; its seed identifies the sample.

    Raises:
        AssertionError: The stage cannot have sent this request.
    """
    messages = tuple(ChatMessage(**message) for message in body['messages'])
    sampling = ChatSampling(body['max_tokens'], body['temperature'], body['top_p'])
    for sample in range(DialoguesConfig().attempts):
        request = ModelRequest(STAGE, messages, sampling, sample)
        if request.sampling_seed == body['seed']:
            return hashlib.sha256(f'{address}\0{MODEL}\0'.encode() + request.digest).digest()
    raise AssertionError('The stub received a request that this stage cannot have sent.')


def kill_once(stub: StubEndpoint, root: pathlib.Path, rng: random.Random, max_answers: int) -> bool:
    """Kill after a random number of further answers; return False if the process had ended."""
    process, before = start(stub, root), sum(stub.answer_counts.values())
    wanted = before + rng.randint(1, max_answers)
    while sum(stub.answer_counts.values()) < wanted:
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    time.sleep(rng.uniform(0.0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2 * PLAN.latency_s)  # Let the stub finish its active requests.
    return True


def main(kills: int, seed: int, count: int) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        write_segments(root, count)
        with serve_stub(PLAN) as stub:
            assert start(stub, root / 'alone').wait() == 0
            requests = len(stub.attempt_counts)
        with serve_stub(PLAN) as stub:
            asked_when_kept: dict[bytes, int] = {}
            keys: dict[str, bytes] = {}
            for number in range(1, kills + 1):
                if not kill_once(stub, root / 'killed', rng, max(2, requests // kills)):
                    print(f'The stage finished after {number - 1} kills: give it more segments.')
                    return 1
                for key in stub.requests.keys() - keys.keys():
                    keys[key] = key_in_cache(stub.address, stub.requests[key])
                found = cached_keys(root / 'killed')
                for key, cached in keys.items():
                    if cached in found:
                        asked_when_kept.setdefault(key, stub.attempt_counts[key])
                shards = len(list((root / 'killed' / 'out').glob('rows-*')))
                print(f'kill {number}: {len(found)} answers cached, {shards} shards', flush=True)
            assert start(stub, root / 'killed').wait() == 0
            again = sum(stub.attempt_counts[key] - times for key, times in asked_when_kept.items())
            twice = sum(stub.answer_counts.values()) - len(stub.answer_counts)
        alone, killed = (contents(root / name / 'out') for name in ('alone', 'killed'))
        rows = len(read_rows(root / 'killed' / 'out'))
        rejects = sum(
            content.count(b'\n') for name, content in killed.items() if name.startswith('rejects-')
        )
        print(
            f'{len(asked_when_kept)} of {len(stub.attempt_counts)} requests were cached at a kill.'
        )
        print(f'Repeated although cached: {again}. Repeated because in flight at a kill: {twice}.')
        same = alone == killed
        print(
            f'{len(alone)} files, {rows} dialogues and {rejects} rejects of {count} segments; same '
            f'bytes: {same}.'
        )
        complete = rejects > 0 and rows + rejects == count
        return 0 if same and complete and again == 0 and twice <= kills * CONCURRENCY else 1


if __name__ == '__main__':
    if sys.argv[1:2] == ['make']:
        make_dialogues(sys.argv[2], pathlib.Path(sys.argv[3]))
    else:
        given = [int(word) for word in sys.argv[1:]]
        sys.exit(main(*(given + [20, 0, 150][len(given) :])))

"""Kill the stage `dialogues` repeatedly in batch mode, and check that nothing is paid for twice.

`python -m tests.ultralink.kill_batches [KILLS [SEED [SEGMENTS]]]` makes dialogues twice: once
undisturbed with single requests, and once with a batch API whose responses are sometimes lost,
killed with SIGKILL at random moments and restarted. It prints the number of batches at each kill,
whether the output files are bitwise equal, and the number of requests that were paid for twice. The
exit status is 1 if files differ or a request was paid for twice.
"""

import pathlib
import random
import signal
import sqlite3
import sys
import tempfile
import time

from malora_jax.ultralink.llm import batch
from malora_jax.ultralink.llm.request_format import EndpointSettings
from tests.helpers.openai_stub import FailurePlan, serve
from tests.helpers.provider_stubs import BatchProvider
from tests.ultralink.helpers import contents, read_rows
from tests.ultralink.kill_often import make_dialogues, start, write_segments

MODULE = 'tests.ultralink.kill_batches'
PLAN = FailurePlan({'truncated': 0.05, 'wrong_language': 0.05})


def kill_once(stub: BatchProvider, root: pathlib.Path, rng: random.Random) -> bool:
    """Kill soon after the next batch is created; return False if the process had ended."""
    process, before = start(stub, root, MODULE), len(stub.batches)
    while len(stub.batches) == before:
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    # The response to the creation takes 0.05 s, the batch 0.2 s.
    time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.08), rng.uniform(0.0, 0.5)]))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def main(kills: int, seed: int, count: int) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        write_segments(root, count)
        with serve(BatchProvider(PLAN, str)) as stub:
            assert start(stub, root / 'online').wait() == 0
            online = stub.answer_counts
        failing = BatchProvider(PLAN, str, seconds=0.2, fail_rate=0.05, lose_rate=0.1)
        with serve(failing) as stub:
            for number in range(1, kills + 1):
                if not kill_once(stub, root / 'killed', rng):
                    print(f'The stage finished after {number - 1} kills: give it more segments.')
                    return 1
                with sqlite3.connect(root / 'killed' / 'answers.sqlite') as connection:
                    open_batches = connection.execute('SELECT id FROM batches').fetchall()
                unknown = sum(not identifier for [identifier] in open_batches)
                print(
                    f'kill {number}: {len(stub.batches)} batches, {len(open_batches)} not '
                    f'collected, {unknown} of them without an id',
                    flush=True,
                )
            assert start(stub, root / 'killed', MODULE).wait() == 0
        twice = sum(stub.answer_counts.values()) - len(stub.answer_counts)
        with sqlite3.connect(root / 'killed' / 'answers.sqlite') as connection:
            query = 'SELECT SUM(prompt_tokens), SUM(tokens - prompt_tokens) FROM replies'
            [tokens] = connection.execute(query).fetchall()
        online_out, killed_out = (
            contents(root / 'online' / 'out'),
            contents(root / 'killed' / 'out'),
        )
        same, rows = online_out == killed_out, len(read_rows(root / 'killed' / 'out'))
        equal = tokens == tuple(stub.billed[1:3]) and stub.answer_counts == online
        print(f'{len(stub.answer_counts)} requests in {len(stub.batches)} batches.')
        print(f'Paid twice: {twice}. Tokens in the cache equal those of the stub: {equal}.')
        print(f'{rows} dialogues of {count} segments; same bytes as online: {same}.')
        return 0 if same and equal and twice == 0 else 1


if __name__ == '__main__':
    if sys.argv[1:2] == ['make']:
        batch._QUIET_S, batch._POLL_S = 0.05, 0.05
        settings = EndpointSettings(batch=True)
        make_dialogues(sys.argv[2], pathlib.Path(sys.argv[3]), settings)
    else:
        given = [int(word) for word in sys.argv[1:]]
        sys.exit(main(*(given + [20, 0, 60][len(given) :])))

"""Kill a small run repeatedly, and check that the outcome is unchanged.

`python -m tests.training.kill_often [KILLS [SEED]]` trains the tiny model twice: once undisturbed,
and once killed with SIGKILL at random moments, every third time during a save, and restarted. It
prints the step and the phase of each kill, and whether the metrics and the final state are bitwise
equal. The exit status is 1 if they are not.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from malora_jax.files import read_json_lines
from malora_jax.training import goodput
from tests.helpers.metric_records import without_times
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

CHANGES = {'training__steps': 2000, 'training__checkpoint_every': 20}


def start(weights: pathlib.Path, workdir: pathlib.Path, cache: str) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, '-m', 'tests.helpers.runs'),
            weights,
            workdir,
            '-1',
            'malora',
            json.dumps(CHANGES),
        ],
        cwd=ROOT,
        env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def goodput_events(workdir: pathlib.Path) -> list[dict]:
    return goodput.read(workdir) if (workdir / goodput.FILE).exists() else []


def is_writing(workdir: pathlib.Path) -> bool:
    """Return whether a checkpoint is being written: Orbax renames it when it is complete."""
    return any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))


def current_phase(workdir: pathlib.Path) -> tuple[int, str]:
    """Return the last step that started, and the current phase."""
    found = goodput_events(workdir)
    step = next((event['step_count'] for event in reversed(found) if 'step_count' in event), 0)
    if is_writing(workdir):
        return step, 'save'
    last = found[-1]
    if 'step_count' in last:
        return step, 'step'
    name = last.get('custom_badput_event_type') or next(iter(last)).rsplit('_', 2)[0]
    return step, name if next(reversed(last)).endswith('start_time') else f'after {name}'


def kill_once(process: subprocess.Popen, workdir: pathlib.Path, rng: random.Random, in_save: bool):
    """Kill the run at a random moment after its first step, or during a later save.

    Returns:
        Step and phase, as from `current_phase`; None if the run had ended.
    """
    known, moment = len(goodput_events(workdir)), None
    delay = rng.uniform(0.0, 4.0)
    while process.poll() is None:
        found = goodput_events(workdir)
        now = time.monotonic()
        if moment is None and any('step_count' in event for event in found[known:]):
            moment = now + delay
        if moment is not None and now >= moment and (not in_save or is_writing(workdir)):
            time.sleep(rng.uniform(0.0, 0.02) if in_save else 0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return current_phase(workdir)
        time.sleep(0.001)
    return None


def last_state(workdir: pathlib.Path):
    """Return the last checkpoint's arrays, loaded by Orbax without their expected shapes."""
    from orbax.checkpoint import v1 as ocp

    last = max((workdir / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name))
    return ocp.load_checkpointables(last, {'state': None})['state']


def main(kills: int, seed: int) -> int:
    import jax
    import numpy as np

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        weights, alone, killed = root / 'tiny.gguf', root / 'alone', root / 'killed'
        write_tiny_gguf(weights)
        assert start(weights, alone, str(root / 'cache')).wait() == 0
        counts: dict[str, int] = {}
        for number in range(1, kills + 1):
            process = start(weights, killed, str(root / 'cache'))
            found = kill_once(process, killed, rng, in_save=number % 3 == 0)
            if found is None:
                print(f'The run finished after {number - 1} kills: give it more steps.')
                return 1
            counts[found[1]] = counts.get(found[1], 0) + 1
            print(f'kill {number}: step {found[0]}, {found[1]}', flush=True)
        assert start(weights, killed, str(root / 'cache')).wait() == 0
        records = [without_times(read_json_lines(d / 'metrics.jsonl')) for d in (alone, killed)]
        states = [jax.tree.leaves(last_state(workdir)) for workdir in (alone, killed)]
        same = [
            records[0] == records[1],
            all(np.array_equal(a, b) for a, b in zip(*states, strict=True)),
        ]
        by_phase = ', '.join(f'{name} {count}' for name, count in sorted(counts.items()))
        print(f'{kills} kills ({by_phase}).')
        print(f'Metrics of {len(records[0])} steps bit-equal: {same[0]}; final state: {same[1]}.')
        print(goodput.describe(goodput.seconds_by_activity(goodput.read(killed))))
        return 0 if all(same) else 1


if __name__ == '__main__':
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(given + [21, 0][len(given) :])))

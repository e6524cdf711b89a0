"""Send SIGTERM to many runs at random moments, and check that the outcomes are unchanged.

`python -m tests.fuzz.signal_often [RUNS [SEED]]` starts tiny runs. Each gets one to five SIGTERMs
while it starts, compiles, trains, saves, scores, writes its results and exits. Of ten runs, eight
are trained by `experiments.train`, one by a sweep with a process for each run, and one by a sweep
whose two runs train jointly. For each run a line shows the exit statuses of its processes, and
whether metrics, final state and scores are bitwise equal to those of an undisturbed run. The exit
status is 1 if a process ended with an undocumented status, or if an outcome differs.
"""

import collections
import os
import pathlib
import random
import sys
import tempfile

from tests.helpers.signals import (
    SWEEP_RUN_NAMES,
    assert_same_outcome,
    make_home,
    run_undisturbed,
    run_with_sigterms,
    sweep_arguments,
)


def main(runs: int, seed: int) -> int:
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(root / 'cache')
        os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        home = make_home(root / 'home', 12, 2, 4)

        def make_command(kind: str, workdir: pathlib.Path) -> tuple[str, list[str], list[str]]:
            """Return the command, its arguments, and the runs in its directory."""
            if kind == 'train':
                return kind, [f'--config={home}/base.py', f'--workdir={workdir}'], ['.']
            if kind == 'sweep':
                one = {'together': 1, 'config.seeds': '(0,)'}
                return 'sweep', sweep_arguments(home, workdir, **one), [SWEEP_RUN_NAMES[0]]
            return 'sweep', sweep_arguments(home, workdir, together=2), [*SWEEP_RUN_NAMES]

        seconds = {}
        for kind in ('train', 'sweep', 'together'):
            command, arguments, _ = make_command(kind, root / kind)
            # The first run fills the compilation cache; the second is measured.
            run_undisturbed(command, *arguments)
            again = make_command(kind, root / f'{kind}_again')[1]
            _, seconds[kind] = run_undisturbed(command, *again)
        number = 0
        while counts['runs'] < runs:
            number += 1
            kind = {8: 'sweep', 9: 'together'}.get(number % 10, 'train')
            workdir = root / str(number)
            command, arguments, names = make_command(kind, workdir)
            rng = random.Random(f'{seed} {number}')
            try:
                found = run_with_sigterms(rng, seconds[kind], [0], command, *arguments)
                for name in names:
                    assert_same_outcome(workdir / name, root / kind / name)
            except AssertionError as error:
                counts.update(['runs', 'failed'])
                print(f'Run {number} ({kind}) FAILED: {error}', flush=True)
                continue
            if not found.signals:
                print('It ended before the first signal and does not count.', flush=True)
                continue
            counts.update(['runs', 'bit-equal', *(f'status {each}' for each in found.statuses)])
            counts['signals'] += sum(found.signals)
            print(f'Run {number} ({kind}): bit-equal', flush=True)
    print(f'Seed {seed}: {dict(counts)}')
    return 1 if counts['failed'] else 0


if __name__ == '__main__':
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(numbers + [100, 0][len(numbers) :])))

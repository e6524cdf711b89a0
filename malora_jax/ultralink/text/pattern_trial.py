r"""Trial of regular expressions on long texts, as a script that ends itself if one takes too long.

Python cannot stop a match: a pattern such as `(\w+\s?)+$` would take longer than any run. So the
trial is a process of its own, which the timer of its CPU time ends.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

# CPU time that a pattern may take for all texts of a trial.
SECONDS = 1.0


def find_slow_pattern(patterns: Sequence[str], texts: Sequence[str]) -> int | None:
    """Return the index of the first pattern that takes longer than `SECONDS`; None if none does.

    Args:
        patterns: Valid regular expressions.
        texts: Texts in which each pattern is searched, ignoring case.
    """
    trial = subprocess.run(
        [sys.executable, '-I', __file__],
        input=json.dumps([patterns, texts]),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if trial.returncode == -signal.SIGVTALRM:
        return int(trial.stdout.split()[-1])
    trial.check_returncode()
    return None


def _main() -> None:
    patterns, texts = json.load(sys.stdin)
    for number, pattern in enumerate(patterns):
        print(number, flush=True)
        # The default action of the timer's signal ends the process.
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        compiled = re.compile(pattern, re.IGNORECASE)
        for text in texts:
            for _ in compiled.finditer(text):
                pass


if __name__ == '__main__':
    _main()

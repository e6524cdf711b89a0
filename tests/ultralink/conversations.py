"""Made-up rows with conversations."""

import random
from typing import Any


def conversation(language: str, subset: str, number: int, turns: int = 1) -> dict[str, Any]:
    """Return a conversation that resembles no other one."""
    random_ = random.Random(f'{language}/{subset}/{number}')
    data = []
    for _ in range(2 * turns):
        if language == 'zh':
            data.append(''.join(chr(random_.randrange(0x4E00, 0x9FA0)) for _ in range(30)))
        else:
            data.append(' '.join(f'mot{random_.randrange(10**6)}' for _ in range(20)))
    row = {'id': f'{language}-{subset}-{number}', 'language': language, 'subset': subset}
    return {**row, 'data': data}

"""A complete run small enough for a test: two toy tasks on the tiny model, six steps.

The model learns next to nothing, so one task has a scorer that may give any answer full score.

As a script, it starts such a run and kills it with SIGKILL in the middle of writing a step's record
or, with `--saved`, once that step's checkpoint is on disk:
`python -m tests.helpers.runs WEIGHTS WORKDIR STEP [METHOD [JSON of changes [--saved]]]`.
"""

import json
import os
import pathlib
import random
import signal
import sys
from typing import Any

from configs.common import base_config
from malora_jax.data import Example, Task, exact_match, register_task
from malora_jax.data.tasks import take_distinct
from malora_jax.frames import call_with_room

TASKS = ('toy_copy', 'toy_reverse')
STEPS = 6


class Digits:
    """Toy source of examples: repeat four digits, or reverse them."""

    def __init__(self, name: str):
        self.name = name

    def examples(self, seed: int, count: int) -> list[Example]:
        rng = random.Random(f'{self.name}{seed}')
        numbers = (f'{rng.randrange(10**4):04d}' for _ in range(20 * count))
        reverse = -1 if self.name == 'toy_reverse' else 1
        return take_distinct(
            self.name, (Example(f'{n} {self.name}', n[::reverse], {}) for n in numbers), count
        )


def same_parity(prediction: str, example: Example) -> float:
    """Return 1.0 if the character codes of both texts have sums of equal parity, else 0.5."""
    odd = [sum(map(ord, text)) % 2 for text in (prediction, example.answer)]
    return 1.0 if odd[0] == odd[1] else 0.5


SCORERS = {'toy_copy': exact_match, 'toy_reverse': same_parity}
for _name in TASKS:
    register_task(Task(_name, Digits(_name), SCORERS[_name]))


def toy_run_config(weights: pathlib.Path, method: str = 'malora', **changes: Any) -> dict[str, Any]:
    """Return the config of the run as a dictionary.

    Args:
        weights: Weights of the tiny model.
        method: Name of the method.
        **changes: Values of changed fields by dotted name, with '__' for the dot.
    """
    config = base_config(method)
    config.model.name = 'tiny'
    config.model.weights = str(weights)
    config.adapter.rank = 4
    config.adapter.dropout = 0.1
    if method != 'lora':
        config.adapter.num_experts = 4
    if method.startswith('malora'):
        config.adapter.shared_rank = 8
    config.data.tasks = TASKS
    config.data.max_per_task = 30
    config.data.held_out = 6
    config.data.sequence_length = 96
    config.data.batch_size = 2
    config.optimizer.learning_rate = 1e-2
    config.training.steps = STEPS
    config.training.checkpoint_every = 2
    config.evaluation.batch_size = 4
    config.evaluation.max_new_tokens = 6
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config.to_dict()


def main(
    weights: str,
    workdir: str,
    step: str,
    method: str = 'malora',
    changes: str = '{}',
    when: str = '',
) -> None:
    """Train, and kill this process when the record of `step` is half written or `step` is saved."""
    from malora_jax import cloud_storage
    from malora_jax.training import checkpoint, metrics, train

    def write(self, record):
        if not when and record['step'] == int(step):
            self._file.write('{"step": ' + step + ', "lo')
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original_write(self, record)

    def save(self, state, *rest):
        number = int(state.step)
        original_save(self, state, *rest)
        if when == '--saved' and number == int(step):
            self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    original_write, metrics.MetricWriter.write = metrics.MetricWriter.write, write
    original_save, checkpoint.Checkpoints.save = checkpoint.Checkpoints.save, save
    settings = toy_run_config(pathlib.Path(weights), method, **json.loads(changes))
    call_with_room(lambda: train(settings, cloud_storage.localize(workdir)))


if __name__ == '__main__':
    main(*sys.argv[1:])

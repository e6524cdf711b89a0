"""Sweeps of a base config that needs no files, and finished runs made by hand."""

import json
import pathlib
from typing import Any

from tests.helpers.paths import ROOT

TASKS = ('chain_sum', 'needle_haystack')


def small_sweep_config(**fields: Any) -> dict[str, Any]:
    """Return the config of a sweep of MALoRA over two learning rates, updated with `fields`."""
    return {
        'base': str(ROOT / 'configs' / 'quickstart.py'),
        'seeds': (0, 1),
        'runs': {'malora': {'arg': 'malora'}},
        'grid': {'optimizer': {'learning_rate': (0.001, 0.01)}},
    } | fields


def make_results(score: float, loss: float, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Return a run's results; the first task is better than the mean, the last one is worse."""
    apart = {tasks[0]: 0.1, tasks[-1]: -0.1}
    of_task = {
        name: {
            **{'before': 0.0, 'loss_before': 5.0, 'examples': 4, 'metric': 'exact_match'},
            **{'after': score + apart.get(name, 0), 'loss_after': loss - apart.get(name, 0)},
        }
        for name in tasks
    }
    return {
        'model': 'smollm2-135m',
        'tasks': of_task,
        'average': {'before': 0.0, 'after': score},
        'parameters': {'trainable': 1234},
        'steps': 10,
        'tokens': 1000,
        'train_time_s': 5.0,
    }


def write_run(workdir: pathlib.Path, name: str, run_results: dict[str, Any]) -> None:
    """Write a finished run into a sweep's directory."""
    (workdir / name).mkdir(parents=True)
    config = {
        'seed': int(name.rpartition('-seed')[2]) if '-seed' in name else 0,
        'method': 'malora',
        'model': {'name': run_results['model']},
        'data': {'tasks': [*run_results['tasks']], 'template': 'chatml'},
    }
    (workdir / name / 'config.json').write_text(json.dumps(config))
    (workdir / name / 'results.json').write_text(json.dumps(run_results))

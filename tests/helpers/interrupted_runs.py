"""Training that is interrupted, and the comparison of two runs of one config."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from malora_jax import training
from malora_jax.files import read_json_lines
from malora_jax.training import metrics, run_config
from malora_jax.training.checkpoint import Checkpoints
from malora_jax.training.setup import build_setup
from malora_jax.training.state import TrainState
from tests.helpers.metric_records import without_times


def train_until(config: dict[str, Any], workdir: pathlib.Path, step: int) -> None:
    """Train, and stop as if by Ctrl-C before the record of a step is written."""
    write = metrics.MetricWriter.write

    def interrupted(self, record):
        if record['step'] == step:
            raise KeyboardInterrupt
        write(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.MetricWriter, 'write', interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, workdir)


def assert_runs_are_equal(
    config: dict[str, Any], one: pathlib.Path, other: pathlib.Path
) -> TrainState:
    """Check that two runs have the same last state and metrics, and return the state."""
    states = [_last_state(config, workdir) for workdir in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    first, second = (
        without_times(read_json_lines(workdir / 'metrics.jsonl')) for workdir in (one, other)
    )
    assert first == second
    return states[0]


def _last_state(config: dict[str, Any], workdir: pathlib.Path) -> TrainState:
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        return checkpoints.restore_state(build_setup(run_config(config)).fresh_state())

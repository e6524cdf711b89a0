import contextlib
import io
import json
import pathlib
import sys

import pytest
from tiny_gguf import write_tiny_gguf

from malora_jax.models import preset
from malora_jax.models.loading.weights import Base, load_base

ROOT = pathlib.Path(__file__).parents[2]
# For model_helpers, and for configs/, which is not installed.
sys.path[:0] = [str(ROOT / 'tests' / 'models'), str(ROOT)]

from loop_helpers import run_settings  # noqa: E402

from malora_jax import training  # noqa: E402


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='session')
def tiny_base(tiny_weights) -> Base:
    return load_base(preset('tiny'), str(tiny_weights))


@pytest.fixture(scope='session')
def finished_run(tiny_weights, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The directory of a run that was never interrupted, and what it wrote to stderr."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.MonkeyPatch.context() as patch:
        patch.delenv('COLUMNS', raising=False)  # A bar is not cut to the width of some terminal.
        training.train(run_settings(tiny_weights), workdir)
    return workdir, stderr.getvalue()


@pytest.fixture(scope='session')
def finished(finished_run) -> pathlib.Path:
    """The directory of a run that was never interrupted; for reading only."""
    return finished_run[0]


@pytest.fixture
def results(finished):
    return json.loads((finished / 'results.json').read_text('utf-8'))

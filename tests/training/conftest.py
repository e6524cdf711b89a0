import contextlib
import io
import json
import pathlib

import pytest

from malora_jax import progress, training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.models import preset
from malora_jax.models.loading.base_model import LoadedBase, load_base
from tests.helpers.compiling import few_optimizations
from tests.helpers.runs import toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='session')
def tiny_base(tiny_weights) -> LoadedBase:
    return load_base(preset('tiny'), str(tiny_weights))


@pytest.fixture(scope='session')
def finished_run(tiny_weights, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """Directory of an uninterrupted run, and its output on stderr.

    It compiles like the modules with `compile_quickly`, whose fixture is made after this one.
    """
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    with (
        few_optimizations(),
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(progress, 'LINE_SECONDS', 0)  # Print all progress.
        training.train(toy_run_config(tiny_weights), workdir, write_run_plots)
    return workdir, stderr.getvalue()


@pytest.fixture(scope='session')
def finished_workdir(finished_run) -> pathlib.Path:
    """Directory of an uninterrupted run; tests must not change it."""
    return finished_run[0]


@pytest.fixture
def results(finished_workdir):
    return json.loads((finished_workdir / 'results.json').read_text('utf-8'))

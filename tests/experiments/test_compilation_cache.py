"""The directory of the compilation cache, and who may write to it."""

import os
import stat
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow(start_first=True)

SCRIPT = """
import jax, jax.numpy as jnp
from experiments import compilation_cache
compilation_cache.enable()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def start(**environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
    return subprocess.run(
        [sys.executable, '-c', SCRIPT],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_programs_are_kept_where_only_the_user_can_write(tmp_path):
    done = start(XDG_CACHE_HOME=str(tmp_path))
    directory = tmp_path / 'malora_jax' / 'compiled'
    assert (done.stdout.strip(), done.stderr) == (str(directory), '')
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    kept = {path.name for path in directory.iterdir() if 'cache' in path.name}
    assert kept
    directory.chmod(0o755)
    start(XDG_CACHE_HOME=str(tmp_path))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir() if 'cache' in path.name} == kept


def test_jax_s_own_setting_comes_first(tmp_path):
    done = start(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'own'))
    assert done.stdout.strip() == str(tmp_path / 'own')
    assert not (tmp_path / 'malora_jax').exists()


def test_without_a_place_for_it_work_goes_on(tmp_path):
    (tmp_path / 'malora_jax').write_text('a file')
    done = start(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == 'None'
    assert done.stderr.startswith('The compilation cache is disabled: ')
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='needs two users')
def test_another_user_s_directory_is_not_trusted(tmp_path):
    directory = tmp_path / 'malora_jax' / 'compiled'
    directory.mkdir(parents=True)
    os.chown(directory, 12345, 12345)
    done = start(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == 'None'
    assert 'belongs to another user' in done.stderr

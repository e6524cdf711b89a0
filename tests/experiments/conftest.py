"""Disable most compiler optimizations, because commands in tests mostly compile."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def commands_compile_quickly():
    """Set the environment variable that child processes inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
        yield

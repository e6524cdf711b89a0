"""Commands in tests compile without most optimizations: most of their time is the compiler's."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def commands_compile_quickly():
    """Set the environment variable that processes inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
        yield

"""These tests mostly compile, so they do it quickly."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def quick(compile_quickly):
    """Disable most compiler optimizations in all tests of this directory."""

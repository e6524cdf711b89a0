"""Tests. This setting applies to pytest and to the processes that tests start from this package."""

import gc

# A collection of garbage visits the objects of all modules, tests and traced programs. By default,
# collections take a quarter of the time in which pytest finds the tests.
gc.set_threshold(50_000)

"""Runs: reading them from their directories, and comparing the finished ones."""

from malora_jax.runs.compare import SeedGroup, check_comparable, seed_groups
from malora_jax.runs.loading import LoadedRun, read_runs

__all__ = ['LoadedRun', 'SeedGroup', 'check_comparable', 'read_runs', 'seed_groups']

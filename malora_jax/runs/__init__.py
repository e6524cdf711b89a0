"""Runs: reading runs from their directories, and comparing finished runs.

Example:
    runs = read_runs([pathlib.Path('runs/malora'), pathlib.Path('runs/lora')])
    for group in seed_groups(runs):
        print(group.name, group.average_score())
"""

from malora_jax.runs.compare import check_comparable, seed_groups
from malora_jax.runs.loading import LoadedRun, read_runs
from malora_jax.runs.seed_group import SeedGroup

__all__ = ['LoadedRun', 'SeedGroup', 'check_comparable', 'read_runs', 'seed_groups']

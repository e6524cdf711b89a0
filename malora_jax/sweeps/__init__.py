"""Sweeps: many runs from one config, started, monitored and reported on together.

Example:
    config = get_config().to_dict()  # Of a file in configs/sweeps.
    sweeping = Sweeping(config, pathlib.Path('runs/rank'), process)
    print(sweeping.run(at_once=1))
"""

from malora_jax.sweeps.directory import config_path
from malora_jax.sweeps.driver import SweepDriver
from malora_jax.sweeps.expand import SweepRun, expand

__all__ = ['SweepDriver', 'SweepRun', 'config_path', 'expand']

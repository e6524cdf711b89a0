"""Sweeps: many runs from one config, started, monitored and reported on together.

Example:
    from configs.sweeps.rank import get_config

    runs = expand(get_config().to_dict())
    run = runs['malora-beta1-rank8-seed0']

`SweepDriver` trains the runs of a sweep.
"""

from malora_jax.sweeps.directory import config_path
from malora_jax.sweeps.driver import SweepDriver
from malora_jax.sweeps.expand import SweepRun, expand

__all__ = ['SweepDriver', 'SweepRun', 'config_path', 'expand']

"""Sweeps: many runs from one config, made, watched and reported together."""

from malora_jax.sweeps.directory import config_path
from malora_jax.sweeps.expand import SweepRun, expand
from malora_jax.sweeps.sweeping import Sweeping

__all__ = ['SweepRun', 'Sweeping', 'config_path', 'expand']

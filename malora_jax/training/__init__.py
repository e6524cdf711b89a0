"""Training: run configuration, objective, optimizer, checkpoints and the training loop."""

from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.training_run import train

__all__ = ['RunConfig', 'run_config', 'train']

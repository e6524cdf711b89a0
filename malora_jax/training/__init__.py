"""Training: run configuration, objective, optimizer, checkpoints and the training loop."""

from etils import epy

# Loaded on first use, because most commands need a run's config, but only one trains.
with epy.lazy_api_imports(globals()):
    from malora_jax.training.config import RunConfig, run_config
    from malora_jax.training.training_run import train

__all__ = ['RunConfig', 'run_config', 'train']

"""malora_jax: multi-task fine-tuning with mixtures of asymmetric low-rank experts."""

__version__ = '0.1.0'

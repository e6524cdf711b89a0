"""Inference with trained models: generation, chat and scoring of answers."""

from malora_jax.inference.language_model import LanguageModel, load, load_all

__all__ = ['LanguageModel', 'load', 'load_all']

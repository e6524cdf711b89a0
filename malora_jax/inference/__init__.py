"""Using what was trained: answers, scores and chats."""

from malora_jax.inference.language_model import LanguageModel, load, load_all

__all__ = ['LanguageModel', 'load', 'load_all']

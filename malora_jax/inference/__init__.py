"""Using what was trained: answers, scores and chats."""

from malora_jax.inference.language_model import LanguageModel, load

__all__ = ['LanguageModel', 'load']

"""malora_jax: multi-task fine-tuning with mixtures of asymmetric low-rank experts."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malora_jax.inference import LanguageModel

__version__ = '0.1.0'


def load(directory: str | os.PathLike[str], weights: str | None = None) -> 'LanguageModel':
    """A trained model to generate, score and chat with: see `inference.load`."""
    from malora_jax import inference  # Not above: whoever wants a part need not wait for all.

    return inference.load(directory, weights)

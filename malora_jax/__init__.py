"""malora_jax: multi-task fine-tuning with MALoRA, mixtures of asymmetric low-rank experts."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malora_jax.inference import LanguageModel

__version__ = '0.1.0'


def load(directory: str | os.PathLike[str], weights: str | None = None) -> 'LanguageModel':
    """Load a trained model, which can generate, score and chat; see `inference.load`.

    For example:

        model = malora_jax.load('runs/malora')
        print(model.chat('What is 2 + 3?'))

    Args:
        directory: Directory of a run (--workdir), or of an export of format `adapter` (--output).
        weights: Location of the base weights, as in configs; None = as in training.

    Raises:
        UserError: The directory holds neither, or the base cannot be loaded or is not the one of
            the training.
    """
    # Imported here because it loads JAX, which users of other modules may not need.
    from malora_jax import inference

    return inference.load(directory, weights)

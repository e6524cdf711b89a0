"""malora_jax: multi-task fine-tuning with MALoRA, mixtures of asymmetric low-rank experts."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from malora_jax.inference import LanguageModel

__version__ = '0.2.0'


def load(
    directory: str | os.PathLike[str], weights: str | None = None, task: str = ''
) -> 'LanguageModel':
    """Load a trained model for generation, chat and scoring of answers.

    This is `malora_jax.inference.load`.

    For example:

        model = malora_jax.load('runs/malora')
        print(model.chat('What is 2 + 3?'))

    Args:
        directory: Directory of a run (--workdir of experiments.train), or of an export with
            --format=adapter (--output of experiments.export).
        weights: Location of the base model's weights, as in config field model.weights; None = the
            location used in training.
        task: Name of the task whose model is loaded, if the method has parameters for each task;
            else ''.

    Returns:
        The model, with the run's best checkpoint (or else its newest) or the exported adapter.

    Raises:
        UserError: The directory holds neither a run nor an export, or the base model cannot be
            loaded or differs from the one used in training, or the task is missing or unknown.
    """
    # Imported here because it loads JAX, which users of other modules may not need.
    from malora_jax import inference

    return inference.load(directory, weights, task)

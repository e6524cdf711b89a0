"""Trained models: loaded with the base model (`TrainedModel`) or in a directory (`StoredModel`)."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from malora_jax import data
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.loading.base_model import LoadedBase, load_base


class TrainedModel(NamedTuple):
    """A trained model in memory.

    Attributes:
        base: Frozen base model with its tokenizer.
        model: Decoder with the adapter.
        variables: Variable collections of the decoder.
        template: Prompt template of the training.
        method: Name of the fine-tuning method.
        weights: Location of the base weights: a GGUF file, a directory, or a model name on the
            Hugging Face Hub; '' = the default of the model's preset.
        step: Number of optimizer steps of the training.
    """

    base: LoadedBase
    model: Decoder
    variables: Any
    template: data.Template
    method: str
    weights: str
    step: int


class StoredModel(NamedTuple):
    """A trained model in a directory, which is not loaded yet.

    Attributes:
        path: Directory of the run or export.
        model: Configuration of the base model.
        weights: Location of the base weights: a GGUF file, a directory, or a model name on the
            Hugging Face Hub; '' = the default of the model's preset.
        restore: Function that loads the trained model, given the base model.
    """

    path: pathlib.Path
    model: ModelConfig
    weights: str
    restore: Callable[[LoadedBase], TrainedModel]

    def load(self) -> TrainedModel:
        """Load the base model and the trained model.

        Raises:
            UserError: The base model cannot be loaded or is not the one used in training, or there
                is no checkpoint.
        """
        return self.restore(load_base(self.model, self.weights))

"""Trained models: loaded with or without the base model, or in a directory (`StoredModel`)."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from malora_jax import data
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.loading.base_model import LoadedBase, load_base
from malora_jax.models.task_lora import task_lora


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

    def for_task(self, task: str) -> 'TrainedModel':
        """Return the model of one task, whose adapter is a LoRA.

        Args:
            task: Name of the task; '' if the adapter has no parameters for tasks, or for only one.

        Raises:
            UserError: The task is missing or unknown, or the adapter has no parameters for tasks.
        """
        model, variables = task_lora(self.model, self.variables, task)
        if model is self.model:
            return self
        return self._replace(model=model, variables=variables, method='lora')


class TrainedAdapter(NamedTuple):
    """A trained adapter in memory, without the base model.

    Attributes:
        model: Decoder with the adapter.
        variables: Variable collections of the adapter.
        method: Name of the fine-tuning method.
        weights: Location of the base weights, as in `TrainedModel`.
        step: Number of optimizer steps of the training.
        base_fingerprint: Fingerprint of the base model.
    """

    model: Decoder
    variables: Any
    method: str
    weights: str
    step: int
    base_fingerprint: str


class StoredModel(NamedTuple):
    """A trained model in a directory, which is not loaded yet.

    Attributes:
        path: Directory of the run or export.
        model: Configuration of the base model.
        weights: Location of the base weights: a GGUF file, a directory, or a model name on the
            Hugging Face Hub; '' = the default of the model's preset.
        restore: Function that loads the trained model, given the base model.
        load_adapter: Function that loads the trained adapter without the base model.
    """

    path: pathlib.Path
    model: ModelConfig
    weights: str
    restore: Callable[[LoadedBase], TrainedModel]
    load_adapter: Callable[[], TrainedAdapter]

    def load(self) -> TrainedModel:
        """Load the base model and the trained model.

        Raises:
            UserError: The base model cannot be loaded or is not the one used in training, or there
                is no checkpoint.
        """
        return self.restore(load_base(self.model, self.weights))

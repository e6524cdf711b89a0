"""A trained model, and one that is kept in a directory."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from malora_jax import data
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.loading.weights import Base, load_base


class Restored(NamedTuple):
    """A trained model.

    Attributes:
        base: frozen model and tokenizer.
        model: the decoder with the adapter.
        variables: its collections.
        template: around questions and answers, the one that was trained with.
        method: name of the method.
        weights: where the base's weights are, as configs say it.
        step: optimizer steps that were made.
    """

    base: Base
    model: Decoder
    variables: Any
    template: data.Template
    method: str
    weights: str
    step: int


class Saved(NamedTuple):
    """A trained model in a directory, without its base.

    Attributes:
        path: the directory.
        model: the base's shape.
        weights: where its weights are, as configs say it.
        restore: makes the model, given the base.
    """

    path: pathlib.Path
    model: ModelConfig
    weights: str
    restore: Callable[[Base], Restored]

    def load(self) -> Restored:
        """The model, with its base.

        Raises:
            UserError: the base cannot be loaded or is another one, or there is no checkpoint.
        """
        return self.restore(load_base(self.model, self.weights))

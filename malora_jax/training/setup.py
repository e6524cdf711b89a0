"""What every command that runs a model builds from a config: base, data, model, generator."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from malora_jax import data, errors
from malora_jax.evaluation import runner
from malora_jax.models import Decoder
from malora_jax.models.generate import Generator
from malora_jax.models.loading.weights import Base, load_base
from malora_jax.training.config import RunConfig
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import TrainState, create_state


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
        run: the config.
        base: frozen model and tokenizer.
        model: the decoder with the adapter.
        splits: training and held-out examples of each task.
        template: the prompt's form.
    """

    run: RunConfig
    base: Base
    model: Decoder
    splits: list[data.Split]
    template: data.Template

    def train_iterator(self) -> grain.DatasetIterator:
        """A fresh iterator over training batches."""
        return data.train_iterator(
            self.splits,
            self.base.tokenizer,
            self.template,
            sequence_length=self.run.data.sequence_length,
            batch_size=self.run.data.batch_size,
            weights=self.run.data.weights,
            seed=self.run.seed,
        )

    def held_out_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Packed batches of all held-out examples, each once."""
        return data.packed_batches(
            [(e, task) for task, split in enumerate(self.splits) for e in split.held_out],
            self.base.tokenizer,
            self.template,
            self.run.data.sequence_length,
            self.run.data.batch_size,
        )

    def generator(self, model: Decoder) -> Generator:
        """A generator for the adapted model or the base alone."""
        evaluation = self.run.evaluation
        return Generator(
            model,
            data.end_id(self.base.tokenizer, self.template),
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
            bucket=evaluation.prompt_bucket,
        )

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        optimizer = make_optimizer(self.run.optimizer, self.run.training.steps)
        return create_state(self.model, optimizer, self.run.seed, self.base.params)

    def answer_held_out(self, variables: Any | None, description: str) -> list[runner.Answer]:
        """Answers every held-out question.

        Args:
            variables: the adapted model's collections, or None for the base alone.
            description: what the progress bar says.
        """
        return runner.answer_held_out(
            self.generator(self.model if variables else Decoder(self.run.model)),
            variables or {'params': self.base.params},
            self.splits,
            self.base.tokenizer,
            self.template,
            description,
        )


def build(run: RunConfig) -> Setup:
    """Loads the base and makes the data of a run.

    Raises:
        UserError: an unknown task or template, too few questions, weights that do not load, or
            answers that generation would cut off.
    """
    tasks = [data.get_task(name) for name in run.data.tasks]
    template = data.get_template(run.data.template)
    splits = [
        data.split_task(task, run.seed, run.data.train_examples, run.data.held_out)
        for task in tasks
    ]
    base = load_base(run.model, run.weights)
    for split in splits:
        needed = runner.longest_answer(split, base.tokenizer, template)
        if run.evaluation.max_new_tokens < needed:
            raise errors.UserError(
                f'evaluation.max_new_tokens is {run.evaluation.max_new_tokens}; it must be at '
                f'least {needed} for the answers of task {split.task_name!r}.'
            )
    return Setup(run, base, Decoder(run.model, run.adapter), splits, template)

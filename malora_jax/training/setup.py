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
from malora_jax.training.heldout import held_out_losses
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import TrainState, create_state
from malora_jax.training.step import Losses


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
        """A fresh iterator over training batches, each with the rows of a whole step."""
        return data.train_iterator(
            self.splits,
            self.base.tokenizer,
            self.template,
            sequence_length=self.run.data.sequence_length,
            batch_size=self.run.data.batch_size * self.run.training.accumulate,
            weights=self.run.data.weights,
            seed=self.run.seed,
        )

    def held_out_losses(self, variables: Any | None) -> Losses:
        """Sums of the losses on all held-out examples.

        Args:
            variables: the adapted model's collections, or None for the base alone.
        """
        model, variables = self._adapted_or_base(variables)
        batches = self._batches([split.held_out for split in self.splits])
        return held_out_losses(model, variables, batches, len(self.splits))

    def validation_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Packed batches of all validation examples, each once."""
        return self._batches([split.validation for split in self.splits])

    def _batches(self, by_task: list[list[data.Example]]) -> Iterator[dict[str, np.ndarray]]:
        return data.packed_batches(
            [(example, task) for task, examples in enumerate(by_task) for example in examples],
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
        model, variables = self._adapted_or_base(variables)
        return runner.answer_held_out(
            self.generator(model),
            variables,
            self.splits,
            self.base.tokenizer,
            self.template,
            description,
        )

    def _adapted_or_base(self, variables: Any | None) -> tuple[Decoder, Any]:
        if variables:
            return self.model, variables
        return Decoder(self.run.model), {'params': self.base.params}


def build(run: RunConfig) -> Setup:
    """Loads the base and makes the data of a run.

    Raises:
        UserError: an unknown task or template, a broken file, too few questions, weights that do
            not load, examples that do not fit, or answers that generation would cut off.
    """
    template = data.get_template(run.data.template)
    splits = _split(run)
    base = load_base(run.model, run.weights)
    for split in splits:
        # Here only for whether they fit; the ones to train on are checked as they are encoded.
        data.encode_examples(
            split.task_name,
            [*split.held_out, *split.validation],
            base.tokenizer,
            template,
            0,
            run.data.sequence_length,
        )
        needed = runner.longest_answer(split, base.tokenizer, template)
        if run.evaluation.max_new_tokens < needed:
            raise errors.UserError(
                f'evaluation.max_new_tokens is {run.evaluation.max_new_tokens}; it must be at '
                f'least {needed} for the answers of task {split.task_name!r}.'
            )
    model = Decoder(run.model, run.adapter, run.training.remat)
    return Setup(run, base, model, splits, template)


def _split(run: RunConfig) -> list[data.Split]:
    """The examples of all tasks, those of files last."""
    sizes = (run.seed, run.data.train_examples, run.data.held_out, run.data.validation)
    splits = [data.split_task(data.get_task(name), *sizes) for name in run.data.tasks]
    if not run.data.files:
        return splits
    splits += [data.split_file(task, *sizes) for task in run.data.file_tasks]
    return data.without_kept_questions(splits)

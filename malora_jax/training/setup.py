"""Parts of a run that are built from its config: base model, data, adapted model and generator."""

import dataclasses
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from malora_jax import data, errors
from malora_jax.adapters.load_balancing import RoutingSums
from malora_jax.distributed import sharding
from malora_jax.evaluation import runner
from malora_jax.models import Decoder
from malora_jax.models.generate import Generator
from malora_jax.models.loading.base_model import LoadedBase, load_base
from malora_jax.models.task_lora import task_lora
from malora_jax.training.config import RunConfig
from malora_jax.training.held_out_loss import held_out_losses
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import TrainState, create_state

# Maximum number of examples that are packed to measure how full the rows are, if the number of
# steps is given. It takes about a second.
_MAX_COUNTED_EXAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Setup:
    """Parts of a run: its config, models and data.

    Attributes:
        run: Config of the run.
        base: Frozen base model and tokenizer.
        model: Decoder with the adapter.
        splits: Training, validation and held-out examples of each task.
        sizes: Number and lengths of each task's training examples.
        template: Prompt template, the text around questions and answers.
    """

    run: RunConfig
    base: LoadedBase
    model: Decoder
    splits: list[data.TaskSplit]
    sizes: list[data.TokenCounts]
    template: data.Template

    @property
    def epoch_examples(self) -> int:
        """Number of training examples of all tasks together."""
        return sum(size.examples for size in self.sizes)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Numeric settings of the run that the training step takes as an argument."""
        return Hyperparameters.from_configs(self.run.seed, self.run.optimizer, self.run.adapter)

    @functools.cached_property
    def shares(self) -> list[float]:
        """Sampling probability of each task in the training mixture."""
        section = self.run.data
        weights = section.weights_of(split.task_name for split in self.splits if split.train)
        return data.mixture_shares(self.splits, weights, section.size_exponent)

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.run.training.steps or self.draw_counts.steps

    @functools.cached_property
    def draw_counts(self) -> data.DrawCounts:
        """Number of steps and examples of the run, counted by packing rows as in training.

        If `training.epochs` sets the length of the run, the run ends with the step that draws the
        last example of the last epoch. If the number of steps is given, counting stops after 10,000
        examples, because counting all of them may take long. For a longer run, the result covers
        only its first steps.
        """
        training, section = self.run.training, self.run.data
        # Round first, because 1.1 · 10 is slightly more than 11 in floating point.
        target_examples = math.ceil(round(training.epochs * self.epoch_examples, 6))
        return data.count_drawn_examples(
            [split.task_name for split in self.splits],
            self.sizes,
            self.shares,
            sequence_length=section.sequence_length,
            batch_size=section.batch_size * training.accumulate,
            seed=self.run.seed,
            streams=section.streams,
            steps=training.steps,
            examples=_MAX_COUNTED_EXAMPLES if training.steps else target_examples,
        )

    def describe_draws(self) -> str:
        """Return one line of text: the steps, the examples drawn and how full the rows are."""
        section = self.run.data
        rows = section.batch_size * self.run.training.accumulate
        return data.describe_draws(
            self.draw_counts, self.splits, self.steps, rows, section.sequence_length
        )

    def train_iterator(self) -> data.RowStreams:
        """Return a new iterator over training batches.

        Each batch has the rows of a whole step, including all micro-batches of gradient
        accumulation. With several processes, each process reads only the data streams of the rows
        that its own devices need.
        """
        section = self.run.data
        rows = section.batch_size * self.run.training.accumulate
        readers_of_row, each = sharding.row_processes(rows), rows // section.streams
        readers = {
            number: set().union(*readers_of_row[number * each : (number + 1) * each])
            for number in range(section.streams)
        }
        own = jax.process_index()
        return data.train_iterator(
            self.splits,
            self.base.tokenizer,
            self.template,
            sequence_length=section.sequence_length,
            batch_size=rows,
            shares=self.shares,
            seed=self.run.seed,
            truncate=section.truncate,
            workers=section.workers,
            streams=section.streams,
            read_streams=[number for number, processes in readers.items() if own in processes],
            saved_streams=[
                number for number, processes in readers.items() if own == min(processes)
            ],
        )

    def held_out_routing(self, variables: Any) -> dict[str, RoutingSums]:
        """Return the routing statistics of the adapted model on the held-out examples.

        Examples are truncated to the sequence length of training.

        Args:
            variables: Collections of the adapted model.

        Returns:
            Sums by path of the adapted linear, with leaves of shape (L, G, E) for L layers, G tasks
            and E experts; empty without routers.
        """
        if not self.run.adapter.has_router:
            return {}
        batches = self.held_out_batches()
        return held_out_losses(self.model, variables, batches, len(self.splits)).routing

    def held_out_batches(self, max_examples: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield packed batches of the held-out examples.

        Each example occurs in one batch, once. Examples longer than a row are truncated.

        Args:
            max_examples: Maximum number of examples per task, evenly spaced; 0 for all.
        """
        examples = [_evenly(split.held_out, max_examples) for split in self.splits]
        return self._batches(examples, truncate=True)

    def training_batches(
        self, tasks: Collection[str], max_examples: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield packed batches of the training examples of some tasks.

        Each example occurs in one batch, once. Examples longer than a row are truncated.

        Args:
            tasks: Names of the tasks.
            max_examples: Maximum number of examples per task, evenly spaced; 0 for all.
        """
        examples = [
            _evenly(split.train, max_examples) if split.task_name in tasks else []
            for split in self.splits
        ]
        return self._batches(examples, truncate=True)

    def validation_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield packed batches in which each validation example occurs once."""
        examples = [split.validation for split in self.splits]
        return self._batches(examples, self.run.data.truncate)

    def _batches(
        self, by_task: Sequence[Sequence[data.Example]], truncate: bool
    ) -> Iterator[dict[str, np.ndarray]]:
        return data.packed_batches(
            [(example, task) for task, examples in enumerate(by_task) for example in examples],
            self.base.tokenizer,
            self.template,
            self.run.data.sequence_length,
            self.run.data.batch_size,
            truncate,
        )

    def generator(self, model: Decoder) -> Generator:
        """Return a text generator for a decoder.

        Args:
            model: Decoder of the adapted model, or of the base model alone.
        """
        evaluation = self.run.evaluation
        limits = [split.task.scoring.max_new_tokens for split in self.splits if split.held_out]
        return Generator(
            model,
            data.end_token_id(self.base.tokenizer, self.template),
            batch_size=evaluation.batch_size,
            max_new_tokens=max([evaluation.max_new_tokens, *limits]),
        )

    def fresh_state(self) -> TrainState:
        """Return the freshly initialized state before the first step."""
        optimizer = make_optimizer(self.run.optimizer, self.steps)
        return create_state(self.model, optimizer, self.run.seed, self.base.params)

    def answer_held_out(self, variables: Any | None, description: str) -> list[runner.Answer]:
        """Answer every held-out question, and return the scored answers, task by task.

        Args:
            variables: Collections of the adapted model; None for the base model alone.
            description: Text of the progress bar.
        """
        model = self.model
        if not variables:
            model = Decoder(self.run.model, attention=self.run.attention)
            variables = {'params': self.base.params}
        if model.adapter is None or not model.adapter.tasks:
            return self._answer(model, variables, self.splits, description)
        answers = []
        for split in (split for split in self.splits if split.held_out):
            own = task_lora(model, variables, split.task_name)
            answers += self._answer(*own, [split], description)
        return answers

    def _answer(
        self, model: Decoder, variables: Any, splits: Sequence[data.TaskSplit], description: str
    ) -> list[runner.Answer]:
        evaluation = self.run.evaluation
        eval_model = runner.EvalModel(
            self.generator(model),
            variables,
            self.base.tokenizer,
            self.template,
            evaluation.samples,
            evaluation.temperature,
            self.run.seed,
        )
        return runner.answer_held_out(eval_model, splits, description)

    def scoring_record(self, split: data.TaskSplit) -> dict[str, Any]:
        """Return the settings with which a task's held-out questions are answered and scored.

        `results.json` stores them as the task's entry `scoring`. They include the scoring rule, the
        prompt template and the decoding settings.
        """
        scoring, evaluation = split.task.scoring, self.run.evaluation
        limit = runner.max_answer_tokens(split, self.base.tokenizer, self.template)
        return {
            **scoring.describe(
                self.template.name, limit, evaluation.temperature, evaluation.samples
            ),
            **runner.scoring_environment(scoring),
        }


def build_setup(run: RunConfig, base: LoadedBase | None = None) -> Setup:
    """Load the base model and the data of a run, and return its `Setup`.

    Args:
        run: Config of the run.
        base: Base model, if it is already loaded; None to load it.

    Raises:
        UserError: A task or the template is unknown, a file is broken, a task has too few
            questions, the weights cannot be loaded, examples are too long, generation would cut
            off right answers, or the attention backend does not run on this device.
    """
    run.choose_attention(jax.devices()[0])
    template = data.get_template(run.data.template)
    sharding.check_rows_divisible('data.batch_size', run.data.batch_size)
    splits = _make_splits(run)
    base = base or load_base(run.model, run.weights)
    if run.data.truncate:
        splits = [_shorten_held_out(run, split, base.tokenizer, template) for split in splits]
    for split in splits:
        _check_answers_fit(run, split, base.tokenizer, template)
    sizes = [_training_size(run, split, base.tokenizer, template) for split in splits]
    model = Decoder(run.model, run.adapter, run.training.remat, run.attention)
    return Setup(run, base, model, splits, sizes, template)


def _evenly(examples: Sequence[data.Example], max_examples: int) -> list[data.Example]:
    """Return at most `max_examples` evenly spaced examples; all of them if `max_examples` is 0."""
    step = -(-len(examples) // max_examples) if max_examples else 1
    return [examples[i] for i in range(0, len(examples), max(step, 1))]


def _shorten_held_out(
    run: RunConfig,
    split: data.TaskSplit,
    tokenizer: data.TokenizerProtocol,
    template: data.Template,
) -> data.TaskSplit:
    """Return a task whose held-out chats are shortened so that they fit into the context."""
    held_out = [
        data.truncate_conversation(example, tokenizer, template, run.model.context)
        for example in split.held_out
    ]
    return dataclasses.replace(split, held_out=held_out)


def _check_answers_fit(
    run: RunConfig,
    split: data.TaskSplit,
    tokenizer: data.TokenizerProtocol,
    template: data.Template,
) -> None:
    """Check that held-out questions fit into the context with their answers and few-shot examples.

    Also check that `evaluation.max_new_tokens` does not cut off a right answer, unless the task has
    its own limit.

    Raises:
        UserError: A question does not fit, or a right answer would be cut off.
    """
    data.measure_examples(
        split.task_name,
        split.held_out,
        tokenizer,
        template,
        run.model.context,
        limit_name=f'the context of {run.model.name}',
    )
    if not split.held_out:
        return
    needed = split.task.scoring.needed_tokens(runner.answer_lengths(split, tokenizer, template))
    if run.evaluation.max_new_tokens < needed:
        raise errors.UserError(
            f'evaluation.max_new_tokens is {run.evaluation.max_new_tokens}; it must be at least '
            f'{needed} for the answers of task {split.task_name!r}.'
        )


def _training_size(
    run: RunConfig,
    split: data.TaskSplit,
    tokenizer: data.TokenizerProtocol,
    template: data.Template,
) -> data.TokenCounts:
    """Return the number and the lengths in tokens of a task's training examples.

    The lengths of the validation examples are only checked.

    Raises:
        UserError: A training or validation example is longer than a row, and `data.truncate` is
            not set.
    """
    size = functools.partial(
        data.measure_examples,
        split.task_name,
        tokenizer=tokenizer,
        template=template,
        sequence_length=run.data.sequence_length,
        truncate=run.data.truncate,
    )
    size(split.validation)
    return size(split.train)


def _make_splits(run: RunConfig) -> list[data.TaskSplit]:
    """Return the splits of all tasks that are trained on or scored; tasks from files come last."""
    section, files = run.data, {task.name: task for task in run.data.file_tasks}
    trained = {*section.tasks, *files}
    names = run.task_names
    scored = set(run.evaluation.tasks or names)
    store = section.store

    def find(name: str) -> data.TaskProtocol:
        if name in files:
            return files[name]
        if not data.is_public_dataset(name):
            return data.get_task(name)
        parts = {'needs_train_split': name in trained, 'needs_test_split': name in scored}
        return data.dataset_task(name, section.form, section.task_settings, store, **parts)

    sizes = (section.max_per_task, section.held_out, section.validation)
    splits = [find(name).split(run.seed, *sizes) for name in names]
    if files:
        splits = data.drop_leaked_questions(splits)
    return [
        dataclasses.replace(
            split,
            train=split.train if split.task_name in trained else [],
            held_out=split.held_out if split.task_name in scored else [],
        )
        for split in splits
    ]

"""A run as frozen dataclasses: what a `ConfigDict` becomes at the entry, validated."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from malora_jax import data, errors
from malora_jax.adapters import METHODS, AdapterConfig, method
from malora_jax.models import ModelConfig
from malora_jax.models.loading.weights import model_config

SCHEDULES = ('cosine', 'linear')
Section = TypeVar('Section')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        tasks: names in the task registry; may be () if there are files.
        weights: share of each task among the examples; () = all the same.
        template: name of the prompt template: 'chatml', 'plain', or 'chat', the model's own.
        train_examples: distinct training questions of each task; of a file at most so many, and
            0 = all.
        held_out: distinct questions of each task that are kept for scoring.
        validation: distinct questions of each task, in neither of those, whose loss chooses the
            best checkpoint; see `training.evaluate_every`.
        sequence_length: T, tokens of a packed row.
        batch_size: B, rows that are computed together; a step has `training.accumulate` times as
            many.
        files: tasks of one's own, 'NAME=PATH' or 'PATH' each; see `data.FileTask` for these five.
        question_field: pattern of the question in these files.
        answer_field: pattern of the answer.
        scorer: name of the scorer.
        file_settings: 'NAME.FIELD=VALUE' each, where one task differs in such a field, or has a
            `test_file`.
    """

    tasks: tuple[str, ...]
    template: str
    train_examples: int
    held_out: int
    sequence_length: int
    batch_size: int
    weights: tuple[float, ...] = ()
    validation: int = 0
    files: tuple[str, ...] = ()
    question_field: str = 'question'
    answer_field: str = 'answer'
    scorer: str = 'exact_match'
    file_settings: tuple[str, ...] = ()

    def __post_init__(self):
        errors.check_types('data', self)
        names = [*self.tasks, *(task.name for task in self.file_tasks)]
        if not names:
            raise errors.UserError(
                "data.tasks and data.files are both empty; name a task, or a file: ('mine.jsonl',)."
            )
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise errors.UserError(f'data.tasks and data.files name {twins[0]!r} twice.')
        _require(
            len(self.weights) in (0, len(names)) and all(w > 0 for w in self.weights),
            'data.weights',
            self.weights,
            'empty, or one positive number a task',
        )
        for task in self.tasks:
            data.get_task(task)
        data.get_template(self.template)
        least = 1 if self.tasks else 0
        _require(
            self.train_examples >= least,
            'data.train_examples',
            self.train_examples,
            f'at least {least}',
        )
        _counts('data', self, 'held_out', 'sequence_length', 'batch_size')
        _require(self.validation >= 0, 'data.validation', self.validation, 'at least 0')

    @property
    def file_tasks(self) -> list[data.FileTask]:
        """The tasks that come from files."""
        return data.file_tasks(
            self.files,
            self.file_settings,
            question_field=self.question_field,
            answer_field=self.answer_field,
            scorer=self.scorer,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW over the adapter.

    Attributes:
        learning_rate: at its peak.
        warmup_ratio: share of the steps over which the rate rises.
        schedule: how it falls to zero afterwards, 'cosine' or 'linear'.
        weight_decay: decoupled, times the learning rate.
        clip_norm: largest norm of the whole gradient.
        router_rate, down_rate, core_rate, up_rate, magnitude_rate: what the rate of each kind of
            leaf is multiplied by, decay included; `shared_down` and `shared_up` go with down and
            up. LoRA+ (Hayou et al. 2024) is up_rate 16.
    """

    learning_rate: float
    warmup_ratio: float
    schedule: str
    weight_decay: float
    clip_norm: float
    router_rate: float = 1.0
    down_rate: float = 1.0
    core_rate: float = 1.0
    up_rate: float = 1.0
    magnitude_rate: float = 1.0

    def __post_init__(self):
        errors.check_types('optimizer', self)
        _positive('optimizer', self, 'learning_rate', 'clip_norm')
        for kind in ('router', 'down', 'core', 'up', 'magnitude'):
            rate = getattr(self, f'{kind}_rate')
            right = 'positive; adapter.frozen names the leaves that do not train'
            _require(rate > 0, f'optimizer.{kind}_rate', rate, right)
        _require(
            0 <= self.warmup_ratio < 1,
            'optimizer.warmup_ratio',
            self.warmup_ratio,
            'at least 0 and below 1',
        )
        _require(self.weight_decay >= 0, 'optimizer.weight_decay', self.weight_decay, 'at least 0')
        if self.schedule not in SCHEDULES:
            raise errors.unknown_name('optimizer.schedule', self.schedule, SCHEDULES)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, how, and what is kept.

    Attributes:
        steps: optimizer steps.
        checkpoint_every: steps between checkpoints; one more is made at the end.
        keep_checkpoints: how many of the newest stay; the best one stays besides.
        accumulate: batches of `data.batch_size` rows whose gradients make one step.
        remat: whether the layers are computed again for the gradient, which saves memory.
        evaluate_every: steps between evaluations of the loss on `data.validation`; 0 = never. The
            checkpoint with the lowest one is kept, and scored at the end.
        patience: evaluations in a row without a lower loss after which the run stops; 0 = it does
            not.
    """

    steps: int
    checkpoint_every: int
    keep_checkpoints: int
    accumulate: int = 1
    remat: bool = False
    evaluate_every: int = 0
    patience: int = 0

    def __post_init__(self):
        errors.check_types('training', self)
        _counts('training', self, 'steps', 'checkpoint_every', 'keep_checkpoints', 'accumulate')
        for field in ('evaluate_every', 'patience'):
            value = getattr(self, field)
            _require(value >= 0, f'training.{field}', value, 'at least 0')
        _require(
            self.patience == 0 or self.evaluate_every > 0,
            'training.patience',
            self.patience,
            '0 where training.evaluate_every is 0',
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How answers are generated and scored.

    Attributes:
        batch_size: prompts that are answered together.
        max_new_tokens: where an answer is cut off.
        prompt_bucket: prompts are padded to a multiple of this many tokens; generation is compiled
            once for each.
    """

    batch_size: int
    max_new_tokens: int
    prompt_bucket: int

    def __post_init__(self):
        errors.check_types('evaluation', self)
        _counts('evaluation', self, 'batch_size', 'max_new_tokens', 'prompt_bucket')


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on.

    Attributes:
        seed: of data, initialisation and dropout.
        method: name of the method that the adapter's settings started from.
        model: the frozen base.
        weights: a GGUF file, a directory or a name on the hub; '' = what belongs to the preset.
        adapter: what is trained.
        data, optimizer, training, evaluation: see there.
    """

    seed: int
    method: str
    model: ModelConfig
    weights: str
    adapter: AdapterConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    def __post_init__(self):
        errors.check_types('config', self)
        if self.method not in METHODS:
            raise errors.unknown_name('method', self.method, METHODS)
        _require(
            self.data.sequence_length <= self.model.context,
            'data.sequence_length',
            self.data.sequence_length,
            f'at most the context of {self.model.name}, {self.model.context}',
        )
        _require(
            self.data.validation > 0 or self.training.evaluate_every == 0,
            'data.validation',
            self.data.validation,
            'at least 1 where training.evaluate_every is not 0',
        )

    @property
    def title(self) -> str:
        """The method, with what its settings differ in from the named one's, and the model."""
        named = method(self.method)
        changes = [
            f'{field.name}={getattr(self.adapter, field.name)}'
            for field in dataclasses.fields(named)
            if getattr(self.adapter, field.name) != getattr(named, field.name)
        ]
        settings = f' ({", ".join(changes)})' if changes else ''
        return f'{self.method}{settings} on {self.model.name}'


@dataclasses.dataclass(frozen=True)
class _Model:
    """The `model` section as it is written; `name` stands for all sizes, or says 'auto'."""

    name: str
    weights: str
    dtype: str

    def __post_init__(self):
        errors.check_types('model', self)


_SECTIONS: dict[str, type] = {
    'adapter': AdapterConfig,
    'data': DataConfig,
    'optimizer': OptimizerConfig,
    'training': TrainingConfig,
    'evaluation': EvaluationConfig,
}


def run_config(config: Mapping[str, Any]) -> RunConfig:
    """Converts a config as it is written in configs/.

    Raises:
        UserError: an unknown or missing field, or a value out of range, named.
    """
    sections = {key: _plain(value) for key, value in config.items()}
    for name, kind in _SECTIONS.items():
        if name in sections:
            sections[name] = _section(name, kind, sections[name])
    if 'model' in sections:
        model = _section('model', _Model, sections['model'])
        sections['model'] = model_config(model.name, model.weights, model.dtype)
        sections['weights'] = model.weights
    return _section('config', RunConfig, sections)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _section(name: str, kind: type[Section], values: Any) -> Section:
    if not isinstance(values, Mapping):
        raise errors.out_of_range(f'config.{name}', values, 'a section with fields')
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for key in values:
        if key not in [field.name for field in fields]:
            raise errors.unknown_name(f'field of {name}', key, [field.name for field in fields])
    for field in fields:
        if field.name not in values and field.default is dataclasses.MISSING:
            raise errors.UserError(f'{name}.{field.name} is missing from the config.')
    return kind(**values)


def _positive(section: str, values: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(values, field)
        _require(value > 0, f'{section}.{field}', value, 'positive')


def _counts(section: str, values: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(values, field)
        _require(value >= 1, f'{section}.{field}', value, 'at least 1')


def _require(right: Any, field: str, value: Any, description: str) -> None:
    if not right:
        raise errors.out_of_range(field, value, description)

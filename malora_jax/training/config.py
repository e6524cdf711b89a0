"""A run as frozen dataclasses: what a `ConfigDict` becomes at the entry, validated."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from malora_jax import data, errors
from malora_jax.adapters import METHODS, AdapterConfig, method
from malora_jax.models import ModelConfig, preset

SCHEDULES = ('cosine', 'linear')
Section = TypeVar('Section')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        tasks: names in the task registry.
        weights: share of each task among the examples; () = all the same.
        template: name of the prompt template.
        train_examples: distinct training questions of each task.
        held_out: distinct questions of each task that are kept for scoring.
        sequence_length: T, tokens of a packed row.
        batch_size: B, rows of a step.
    """

    tasks: tuple[str, ...]
    template: str
    train_examples: int
    held_out: int
    sequence_length: int
    batch_size: int
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        errors.check_types('data', self)
        _require(self.tasks, 'data.tasks', self.tasks, 'at least one task name')
        _require(
            len(set(self.tasks)) == len(self.tasks), 'data.tasks', self.tasks, 'names without twins'
        )
        _require(
            len(self.weights) in (0, len(self.tasks)) and all(w > 0 for w in self.weights),
            'data.weights',
            self.weights,
            'empty, or one positive number a task',
        )
        for task in self.tasks:
            data.get_task(task)
        data.get_template(self.template)
        _counts('data', self, 'train_examples', 'held_out', 'sequence_length', 'batch_size')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW over the adapter.

    Attributes:
        learning_rate: at its peak.
        warmup_ratio: share of the steps over which the rate rises.
        schedule: how it falls to zero afterwards, 'cosine' or 'linear'.
        weight_decay: decoupled, times the learning rate.
        clip_norm: largest norm of the whole gradient.
    """

    learning_rate: float
    warmup_ratio: float
    schedule: str
    weight_decay: float
    clip_norm: float

    def __post_init__(self):
        errors.check_types('optimizer', self)
        _positive('optimizer', self, 'learning_rate', 'clip_norm')
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
    """How long, and what is kept.

    Attributes:
        steps: optimizer steps.
        checkpoint_every: steps between checkpoints; one more is made at the end.
        keep_checkpoints: how many of the newest stay.
    """

    steps: int
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self):
        errors.check_types('training', self)
        _counts('training', self, 'steps', 'checkpoint_every', 'keep_checkpoints')


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
        weights: path of the base's weights; '' = those that belong to the preset.
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
    """The `model` section as it is written; `name` stands for all sizes."""

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
        sections['model'] = preset(model.name, dtype=model.dtype)
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

"""A run as frozen dataclasses: what a `ConfigDict` becomes at the entry, validated."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from malora_jax import data, errors
from malora_jax.adapters import METHODS, AdapterConfig, AdapterSettings, method
from malora_jax.adapters.methods import settings_of
from malora_jax.adapters.structures import KINDS
from malora_jax.distributed.mesh import MeshConfig
from malora_jax.models import ModelConfig
from malora_jax.models.decoder import REMAT
from malora_jax.models.loading.weights import model_config
from malora_jax.training.checks import at_least, positive, require
from malora_jax.training.data_config import DataConfig, check_task

SCHEDULES = ('cosine', 'linear')
Section = TypeVar('Section')


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
        positive('optimizer', self, 'learning_rate', 'clip_norm')
        right = 'positive; adapter.frozen names the leaves that do not train'
        for kind in {kind for kind, _ in KINDS.values()}:
            rate = getattr(self, f'{kind}_rate')
            require(rate > 0, f'optimizer.{kind}_rate', rate, right)
        require(
            0 <= self.warmup_ratio < 1,
            'optimizer.warmup_ratio',
            self.warmup_ratio,
            'at least 0 and below 1',
        )
        at_least(0, 'optimizer', self, 'weight_decay')
        if self.schedule not in SCHEDULES:
            raise errors.unknown_name('optimizer.schedule', self.schedule, SCHEDULES)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, how, and what is kept.

    Attributes:
        steps: optimizer steps; 0 = what `epochs` come to.
        epochs: how often to draw as many examples as there are in all tasks together; 0 = by
            `steps`. The examples' lengths are packed as in training to count the steps.
        checkpoint_every: steps between checkpoints; one more is made at the end.
        keep_checkpoints: how many of the newest stay; the best one stays besides.
        accumulate: batches of `data.batch_size` rows whose gradients make one step.
        remat: which activations are computed again for the gradient instead of being kept: 'light',
            those between the linears; 'full', all of a layer; 'none'.
        evaluate_every: steps between evaluations of the loss on `data.validation`; 0 = never. The
            checkpoint with the lowest one is kept, and scored at the end.
        patience: evaluations in a row without a lower loss after which the run stops; 0 = it does
            not.
        start_from: directory of an exported adapter, or of a LoRA that `peft` saved, whose values
            the adapter starts from; '' = at random. A mixture may start from a LoRA, too, and then
            computes at first what the LoRA computes.
        skip_nonfinite: how many steps in a row are left out because their loss or gradient is not
            finite; the run stops at the next.
    """

    steps: int
    checkpoint_every: int
    keep_checkpoints: int
    accumulate: int = 1
    remat: str = 'light'
    evaluate_every: int = 0
    patience: int = 0
    epochs: float = 0.0
    start_from: str = ''
    skip_nonfinite: int = 0

    def __post_init__(self):
        errors.check_types('training', self)
        at_least(1, 'training', self, 'checkpoint_every', 'keep_checkpoints', 'accumulate')
        counts = ('steps', 'epochs', 'evaluate_every', 'patience', 'skip_nonfinite')
        at_least(0, 'training', self, *counts)
        if self.remat not in REMAT:
            raise errors.unknown_name('training.remat', self.remat, REMAT)
        require(
            (self.steps > 0) != (self.epochs > 0),
            'training.steps',
            self.steps,
            f'at least 1 where training.epochs is 0, and else 0; that is {self.epochs}',
        )
        require(
            self.patience == 0 or self.evaluate_every > 0,
            'training.patience',
            self.patience,
            '0 where training.evaluate_every is 0',
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How answers are generated and scored.

    Attributes:
        batch_size: answers that are written side by side.
        max_new_tokens: where an answer is cut off.
        tasks: which tasks are scored, ones that are not trained on too; () = all of `data.tasks`
            and `data.files`.
        samples: programs for each question of a task that runs them; more than 1 are drawn at
            `temperature`, and pass@1 and pass@samples are estimated.
        temperature: of these samples; 0 = the most probable tokens.
    """

    batch_size: int
    max_new_tokens: int
    tasks: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0

    def __post_init__(self):
        errors.check_types('evaluation', self)
        at_least(1, 'evaluation', self, 'batch_size', 'max_new_tokens', 'samples')
        at_least(0, 'evaluation', self, 'temperature')
        require(
            self.samples == 1 or self.temperature > 0,
            'evaluation.temperature',
            self.temperature,
            'positive where evaluation.samples is more than 1',
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on.

    Attributes:
        seed: of data, initialisation and dropout.
        method: name of the method that the adapter's settings started from.
        model: the frozen base.
        weights: a GGUF file, a directory or a name on the hub; '' = what belongs to the preset.
        adapter: what is trained.
        data, optimizer, training, evaluation, mesh: see there.
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
    mesh: MeshConfig

    def __post_init__(self):
        errors.check_types('config', self)
        if self.method not in METHODS:
            raise errors.unknown_name('method', self.method, METHODS)
        require(
            self.data.sequence_length <= self.model.context,
            'data.sequence_length',
            self.data.sequence_length,
            f'at most the context of {self.model.name}, {self.model.context}',
        )
        require(
            self.data.validation > 0 or self.training.evaluate_every == 0,
            'data.validation',
            self.data.validation,
            'at least 1 where training.evaluate_every is not 0',
        )
        files = [task.name for task in self.data.file_tasks]
        for task in self.evaluation.tasks:
            check_task('evaluation.tasks', task, files)
        for task in data.benchmark_settings(self.data.form, self.data.task_settings):
            if task not in self.benchmarks:
                raise errors.unknown_name('dataset in data.task_settings', task, self.benchmarks)

    @property
    def benchmarks(self) -> list[str]:
        """The public datasets that are trained on or scored."""
        files = {task.name for task in self.data.file_tasks}
        names = dict.fromkeys([*self.data.tasks, *self.evaluation.tasks])
        return [name for name in names if name not in files and data.is_benchmark(name)]

    @property
    def title(self) -> str:
        """The method, with what its settings differ in from the named one's, and the model."""
        named, own = (
            dataclasses.asdict(settings_of(adapter))
            for adapter in (method(self.method), self.adapter)
        )
        changes = [f'{field}={value}' for field, value in own.items() if value != named[field]]
        settings = f' ({", ".join(changes)})' if changes else ''
        return f'{self.method}{settings} on {self.model.name}'


@dataclasses.dataclass(frozen=True)
class _Model:
    """The `model` section as it is written; `name` stands for all sizes, or says 'auto'."""

    name: str
    weights: str
    dtype: str
    quantize: str = ''

    def __post_init__(self):
        errors.check_types('model', self)


_SECTIONS: dict[str, type] = {
    'adapter': AdapterSettings,
    'data': DataConfig,
    'optimizer': OptimizerConfig,
    'training': TrainingConfig,
    'evaluation': EvaluationConfig,
    'mesh': MeshConfig,
}


def defaults() -> dict[str, Any]:
    """By dotted name, what a config.json that lacks a field means: those that came later."""
    sections = _SECTIONS | {'model': _Model}
    return {
        f'{section}.{field.name}': list(field.default)
        if isinstance(field.default, tuple)
        else field.default
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def run_config(config: Mapping[str, Any]) -> RunConfig:
    """Converts a config as it is written in configs/.

    Raises:
        UserError: an unknown or missing field, or a value out of range, named.
    """
    # Runs older than meshes say nothing of them.
    sections: dict[str, Any] = {'mesh': {}}
    sections |= {key: _plain(value) for key, value in config.items()}
    for name, kind in _SECTIONS.items():
        if name in sections:
            sections[name] = _section(name, kind, sections[name])
    if 'adapter' in sections:
        sections['adapter'] = sections['adapter'].build()
    if 'model' in sections:
        model = _section('model', _Model, sections['model'])
        sections['model'] = model_config(model.name, model.weights, model.dtype, model.quantize)
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

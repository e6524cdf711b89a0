"""Validated run configuration: the frozen dataclasses that `run_config` makes from a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from malora_jax import data, errors
from malora_jax.adapters import METHODS, AdapterConfig, AdapterSettings, method
from malora_jax.adapters.base_structure import PARAMETER_KINDS
from malora_jax.adapters.settings import settings_of, with_tasks
from malora_jax.distributed.mesh import MeshConfig
from malora_jax.models import ModelConfig, attention_backends
from malora_jax.models.loading.base_model import model_config
from malora_jax.training.checks import check_field, check_min, check_positive
from malora_jax.training.data_config import DataConfig, check_task
from malora_jax.training.training_config import TrainingConfig

SCHEDULES = ('cosine', 'linear')
Section = TypeVar('Section')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the AdamW optimizer, which updates only the adapter.

    Attributes:
        learning_rate: Peak learning rate.
        warmup_ratio: Share of the steps for linear warm-up of the learning rate, 0 to below 1.
        schedule: Decay of the learning rate to zero after warm-up, 'cosine' or 'linear'.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        clip_norm: Maximum global norm of the gradient; a larger gradient is clipped to it.
        router_rate: Factor by which the learning rate and the weight decay of the routers are
            multiplied.
        down_rate: Factor of the learning rate and the weight decay of the down-projections (`down`,
            and MALoRA's `shared_down`).
        core_rate: Factor of the learning rate and the weight decay of the cores (`core`).
        up_rate: Factor of the learning rate and the weight decay of the up-projections (`up` and
            `shared_up`). With 16, this is LoRA+ (Hayou et al. 2024).
        magnitude_rate: Factor of the learning rate and the weight decay of DoRA's magnitudes.

    Raises:
        UserError: A value has the wrong type or is out of range.
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
        check_positive('optimizer', self, 'learning_rate', 'clip_norm')
        allowed = 'positive; to freeze leaves, name them in adapter.frozen'
        for kind in {kind for kind, _ in PARAMETER_KINDS.values()}:
            rate = getattr(self, f'{kind}_rate')
            check_field(rate > 0, f'optimizer.{kind}_rate', rate, allowed)
        check_field(
            0 <= self.warmup_ratio < 1,
            'optimizer.warmup_ratio',
            self.warmup_ratio,
            'at least 0 and below 1',
        )
        check_min(0, 'optimizer', self, 'weight_decay')
        if self.schedule not in SCHEDULES:
            raise errors.unknown_name('optimizer.schedule', self.schedule, SCHEDULES)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings for answering and scoring the held-out questions.

    Attributes:
        batch_size: Number of answers that are generated together.
        max_new_tokens: Maximum number of tokens of a generated answer, unless the task's scoring
            rule sets its own limit.
        tasks: Names of the tasks to score, which may include tasks without training; () = all of
            `data.tasks` and `data.files`.
        samples: Number of programs to sample for each question of a task that executes programs.
            With more than 1, pass@1 and pass@samples are estimated.
        temperature: Sampling temperature of these programs; 0 = greedy decoding.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another value.
    """

    batch_size: int
    max_new_tokens: int
    tasks: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0

    def __post_init__(self):
        errors.check_types('evaluation', self)
        check_min(1, 'evaluation', self, 'batch_size', 'max_new_tokens', 'samples')
        check_min(0, 'evaluation', self, 'temperature')
        check_field(
            self.samples == 1 or self.temperature > 0,
            'evaluation.temperature',
            self.temperature,
            'positive if evaluation.samples is more than 1',
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Complete configuration of a training run.

    `run_config` makes it from a config of configs/:

        from configs import quickstart
        run = run_config(quickstart.get_config('malora').to_dict())

    Attributes:
        seed: Random seed of data, initialization and dropout.
        method: Name of the method whose settings the adapter is based on.
        model: Configuration of the frozen base model.
        weights: Weights of the base model: a GGUF file, a directory, or a model name on the Hugging
            Face Hub; '' = the default of the preset.
        attention: Attention backend, one of `attention_backends.BACKENDS`.
        adapter: Configuration of the adapter.
        data: Tasks, prompt templates, and batches.
        optimizer: Settings of AdamW and of the learning rate schedule.
        training: Settings of the training loop.
        evaluation: Settings for scoring the held-out questions.
        mesh: Number of devices for data parallelism, FSDP, tensor and expert parallelism.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another value.
    """

    seed: int
    method: str
    model: ModelConfig
    weights: str
    attention: str
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
        check_field(
            self.data.sequence_length <= self.model.context,
            'data.sequence_length',
            self.data.sequence_length,
            f'at most the context of {self.model.name}, {self.model.context}',
        )
        check_field(
            self.data.validation > 0 or self.training.evaluate_every == 0,
            'data.validation',
            self.data.validation,
            'at least 1 if training.evaluate_every is not 0',
        )
        files = [task.name for task in self.data.file_tasks]
        self.training.check_start(self.adapter, len(self.data.trained_tasks))
        for task in self.evaluation.tasks:
            check_task('evaluation.tasks', task, files)
        for task in data.dataset_settings(self.data.form, self.data.task_settings):
            if task not in self.public_datasets:
                raise errors.unknown_name(
                    'dataset in data.task_settings', task, self.public_datasets
                )

    def choose_attention(self, device: Any) -> attention_backends.Choice:
        """Return the attention backend of the run on a device; see `attention_backends.choose`."""
        return attention_backends.choose(self.attention, self.model.head_width, device)

    def for_device(self, device: Any) -> 'RunConfig':
        """Return the config with the attention backend that 'auto' means on a device.

        Args:
            device: JAX device, which may be one of a topology for ahead-of-time compilation.

        Raises:
            UserError: `model.attention` names a kernel that does not run on the device.
        """
        return dataclasses.replace(self, attention=self.choose_attention(device).backend)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of all tasks that are trained on or scored, in the order of their indices."""
        if self.adapter.tasks:
            return self.adapter.tasks
        files = [task.name for task in self.data.file_tasks]
        return tuple(dict.fromkeys([*self.data.tasks, *self.evaluation.tasks, *files]))

    @property
    def public_datasets(self) -> list[str]:
        """Names of the public datasets that are trained on or scored."""
        files = {task.name for task in self.data.file_tasks}
        names = dict.fromkeys([*self.data.tasks, *self.evaluation.tasks])
        return [name for name in names if name not in files and data.is_public_dataset(name)]

    @property
    def title(self) -> str:
        """Title for messages: the method, the changed settings, and the model.

        The changed settings are those of the adapter that differ from the method's settings.
        """
        named, own = (
            dataclasses.asdict(settings_of(adapter))
            for adapter in (with_tasks(method(self.method), self.adapter.tasks), self.adapter)
        )
        changes = [f'{field}={value}' for field, value in own.items() if value != named[field]]
        settings = f' ({", ".join(changes)})' if changes else ''
        return f'{self.method}{settings} on {self.model.name}'


@dataclasses.dataclass(frozen=True)
class _ModelSection:
    """The section `model` of a config.

    Attributes:
        name: Name of a preset; 'auto' reads the model's shape from the weights.
        weights: Weights of the base model, as in `RunConfig`.
        dtype: Name of the dtype of activations and frozen weights.
        quantize: Quantization format of the frozen kernels; '' = not quantized.
        attention: Attention backend: 'xla', 'splash' (TPU) or 'triton' (NVIDIA GPU). 'auto' = the
            kernel for the device if it is verified with the installed version of JAX, 'xla'
            otherwise. Results agree up to rounding.
    """

    name: str
    weights: str
    dtype: str
    quantize: str = ''
    attention: str = 'auto'

    def __post_init__(self):
        errors.check_types('model', self)
        if self.attention not in attention_backends.BACKENDS:
            raise errors.unknown_name(
                'model.attention', self.attention, attention_backends.BACKENDS
            )


_SECTIONS: dict[str, type] = {
    'adapter': AdapterSettings,
    'data': DataConfig,
    'optimizer': OptimizerConfig,
    'training': TrainingConfig,
    'evaluation': EvaluationConfig,
    'mesh': MeshConfig,
}


def field_defaults() -> dict[str, Any]:
    """Return the default of each optional config field, by dotted name.

    If a stored `config.json` lacks a field because an earlier version of this package wrote it, the
    run has the field's default.
    """
    sections = _SECTIONS | {'model': _ModelSection}
    return {
        f'{section}.{field.name}': list(field.default)
        if isinstance(field.default, tuple)
        else field.default
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def run_config(config: Mapping[str, Any]) -> RunConfig:
    """Validate a config of configs/ and convert it to a `RunConfig`.

    For example, with the config of the quickstart:

        from configs import quickstart
        run = run_config(quickstart.get_config('malora').to_dict())

    With `model.name` 'auto', the shape of the model is read from the weights. If they are on the
    Hugging Face Hub, the model's config is downloaded.

    Args:
        config: Nested config, as `get_config` of a module in configs/ returns it.

    Raises:
        UserError: A field is unknown or missing, or a value is not valid. The message names the
            field.
    """
    # Stored configs of runs that predate device meshes have no section `mesh`.
    sections: dict[str, Any] = {'mesh': {}}
    sections |= {key: _lists_to_tuples(value) for key, value in config.items()}
    for name, kind in _SECTIONS.items():
        if name in sections:
            sections[name] = _section(name, kind, sections[name])
    if 'adapter' in sections:
        sections['adapter'] = sections['adapter'].build()
        if 'data' in sections:
            tasks = sections['data'].trained_tasks
            sections['adapter'] = with_tasks(sections['adapter'], tasks)
    if 'model' in sections:
        model = _section('model', _ModelSection, sections['model'])
        sections['model'] = model_config(model.name, model.weights, model.dtype, model.quantize)
        sections['weights'] = model.weights
        sections['attention'] = model.attention
    run = _section('config', RunConfig, sections)
    own = run.adapter.tasks
    check_field(
        not own or {*run.evaluation.tasks} <= {*own},
        'evaluation.tasks',
        run.evaluation.tasks,
        f'() or tasks that are trained on ({", ".join(own)}), because {run.method} has parameters '
        'for each of them',
    )
    return run


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
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

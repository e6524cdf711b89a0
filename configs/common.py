"""Base config and helpers of all configs."""

import dataclasses

from ml_collections import ConfigDict

from malora_jax.adapters import method
from malora_jax.adapters.methods import settings_of


def base_config(method_name: str) -> ConfigDict:
    """A config with a method's settings and the paper's hyperparameters, without a task.

    α follows an overridden rank, as 2 · rank; anything else is overridden by its own name.
    """
    config = ConfigDict()
    config.seed = 0
    config.method = method_name

    config.model = ConfigDict()
    config.model.name = 'smollm2-135m'  # A preset, or 'auto' for what the weights are.
    config.model.weights = ''  # The preset's own; else a GGUF file, a directory or a hub name.
    config.model.dtype = 'float32'
    config.model.quantize = ''  # Or 'int8', 'w8a8', 'int4', 'nf4': the kernels of the frozen base.

    settings = dataclasses.asdict(settings_of(method(method_name)))
    del settings['alpha']
    config.adapter = ConfigDict(settings)
    config.adapter.alpha = config.adapter.get_ref('rank').to_float() * 2.0

    config.data = ConfigDict()
    config.data.weights = ()  # By size_exponent: 0 = all tasks the same, 1 = by size.
    config.data.size_exponent = 0.0
    config.data.template = 'chatml'  # Or 'plain', or 'chat', the model's own.
    config.data.truncate = False
    config.data.workers = 0
    config.data.streams = 1  # As many as there are hosts, and each reads its share alone.
    # Of public datasets.
    config.data.form = 'completion'  # Or 'sectioned'.
    config.data.task_settings = ()  # Such as ('gsm8k.shots=0', 'boolq.form=sectioned').
    config.data.directory = ''  # Where they are stored; '' = TFDS_DATA_DIR, or TFDS's own.
    config.data.sources = ()  # 'DATASET/SPLIT=PATH' each, to read local files instead of the hub.
    config.data.skip_broken = False
    config.data.validation = 0  # With more, and evaluate_every: the best checkpoint is chosen.

    # Tables 8 and 9 of the paper; it does not name the schedule.
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.schedule = 'cosine'
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    # Multiples of learning_rate.
    config.optimizer.router_rate = 1.0
    config.optimizer.down_rate = 1.0
    config.optimizer.core_rate = 1.0
    config.optimizer.up_rate = 1.0
    config.optimizer.magnitude_rate = 1.0

    config.training = ConfigDict()
    config.training.epochs = 0.0  # By steps.
    config.training.keep_checkpoints = 2
    config.training.accumulate = 1
    config.training.remat = 'light'  # Or 'full', or 'none'.
    config.training.evaluate_every = 0
    config.training.patience = 0
    config.training.skip_nonfinite = 0  # Stops at the first loss or gradient that is not finite.
    config.training.start_from = ''  # An exported adapter, or a LoRA that `peft` saved.

    # Devices along each axis; -1 = all that are left.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # Rows of their own, and all of the model.
    config.mesh.fsdp = 1  # Rows of their own, and a share of the model.
    config.mesh.tensor = 1  # Some heads and hidden units of the same rows.
    config.mesh.expert = 1  # Some of the experts.

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 64
    config.evaluation.max_new_tokens = 32
    config.evaluation.tasks = ()  # All that are trained on.
    config.evaluation.samples = 1
    config.evaluation.temperature = 0.0
    return config

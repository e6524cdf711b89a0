"""Base config with the default values of all configs."""

import dataclasses

from ml_collections import ConfigDict

from malora_jax.adapters import method
from malora_jax.adapters.settings import settings_of


def base_config(method_name: str) -> ConfigDict:
    """Return a config with a method's settings and the paper's hyperparameters, without a task.

    By default, adapter.alpha is 2 · adapter.rank. If only the rank is overridden, alpha is computed
    from the new rank.

    Args:
        method_name: Name of the method, a key of `adapters.METHODS`.
    """
    config = ConfigDict()
    config.seed = 0
    config.method = method_name

    config.model = ConfigDict()
    config.model.name = 'smollm2-135m'  # Preset; 'auto' = as the weight files describe.
    config.model.weights = ''  # GGUF file, directory or hub name; '' = the preset's weights.
    config.model.dtype = 'float32'
    config.model.quantize = ''  # Frozen base: 'int8', 'w8a8', 'int4', 'nf4'; '' = no quantization.
    config.model.attention = 'auto'  # Attention backend; or 'xla', 'splash' (TPU), 'triton' (GPU).

    settings = dataclasses.asdict(settings_of(method(method_name)))
    del settings['alpha']
    config.adapter = ConfigDict(settings)
    config.adapter.alpha = config.adapter.get_ref('rank').to_float() * 2.0

    config.data = ConfigDict()
    config.data.weights = ()  # Sampling weights of tasks; () = task size ** size_exponent.
    config.data.size_exponent = 0.0
    config.data.template = 'chatml'  # Or 'plain', or 'chat': the model's own template.
    config.data.truncate = False
    config.data.workers = 0
    config.data.streams = 1  # If set to the number of hosts, each host reads only its share.
    # Settings of public datasets.
    config.data.form = 'completion'  # Prompt form; or 'sectioned', 'llm_adapters', 'lm_eval'.
    config.data.task_settings = ()  # Such as ('gsm8k.shots=0', 'boolq.form=sectioned').
    config.data.directory = ''  # Storage of the datasets; '' = TFDS_DATA_DIR, or TFDS's own.
    config.data.sources = ()  # 'DATASET/SPLIT=PATH' reads this split from a local file.
    config.data.skip_broken = False
    config.data.validation = 0  # Examples per task whose loss selects the best checkpoint.

    # Values from Tables 8 and 9 of the MALoRA paper, which does not state the schedule.
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.schedule = 'cosine'
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    # Multipliers of the learning rate for each kind of parameter.
    config.optimizer.router_rate = 1.0
    config.optimizer.down_rate = 1.0
    config.optimizer.core_rate = 1.0
    config.optimizer.up_rate = 1.0
    config.optimizer.magnitude_rate = 1.0

    config.training = ConfigDict()
    config.training.epochs = 0.0  # 0 = the length is set by training.steps.
    config.training.keep_checkpoints = 2
    config.training.accumulate = 1  # Gradient accumulation: micro-batches per optimizer step.
    config.training.remat = 'light'  # Gradient checkpointing; or 'full', 'none'.
    config.training.evaluate_every = 0
    config.training.patience = 0  # Early stopping: evaluations without improvement; 0 = off.
    # Maximum number of consecutive steps that are skipped because the loss or the gradient is not
    # finite; 0 = stop at the first such step.
    config.training.skip_nonfinite = 0
    # Directory of an exported adapter or of a LoRA saved by PEFT; several LoRAs, separated by
    # commas, become the experts of a mixture.
    config.training.start_from = ''
    config.training.router_start = 'random'  # Routers of several LoRAs; or 'arrow', 'tasks'.

    # Number of devices along each mesh axis; -1 = all remaining devices.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # Data parallelism: each device has its own rows and the whole model.
    config.mesh.fsdp = 1  # FSDP: each device has its own rows and a shard of the model.
    config.mesh.tensor = 1  # Tensor parallelism: same rows, some of the heads and hidden units.
    config.mesh.expert = 1  # Expert parallelism: same rows, some of the experts.

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 64
    config.evaluation.max_new_tokens = 32
    config.evaluation.tasks = ()  # () = all tasks that are trained on.
    config.evaluation.samples = 1
    config.evaluation.temperature = 0.0
    return config

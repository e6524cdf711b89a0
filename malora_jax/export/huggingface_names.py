"""Names of linear layers and base models in Hugging Face libraries."""

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.trees import parent_module
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel
from malora_jax.models.loading import model_hub, tensor_names
from malora_jax.models.loading.base_model import find_weights


def module_name(target: str) -> str:
    """Return the name of an adapted linear layer in `transformers`, with {} for the layer index.

    Args:
        target: Name of the linear layer, such as 'q'.
    """
    path = f'layers/{parent_module(target)}/{target}'
    return tensor_names.weight_name(path, 'huggingface').removesuffix('.weight')


def target_modules(adapter: AdapterConfig) -> list[str]:
    """Return the last part of the name of each adapted linear layer, such as 'q_proj'."""
    return [module_name(target).rpartition('.')[2] for target in adapter.targets]


def base_name(trained: TrainedModel | TrainedAdapter) -> str:
    """Return the location of the base model's weights: a path, or a repository on the Hub.

    For the default weights of a preset, this is the preset's repository, even if the weights come
    from an installed GGUF file.
    """
    name = trained.model.config.name
    return trained.weights or model_hub.REPO_IDS.get(name, name)


def has_base_weights(trained: TrainedModel | TrainedAdapter) -> bool:
    """Return whether the weights that `base_name` names are those of the training.

    They are not if the base model was quantized, or was read from a GGUF file.
    """
    config = trained.model.config
    return not config.quantize and find_weights(config, trained.weights).suffix != '.gguf'

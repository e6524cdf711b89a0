"""Mixins that turn configurations and models of `transformers` into those with routed mixtures."""

import os
from typing import Any

from mixture_transformers import loading
from mixture_transformers.layers import adapt_layers
from mixture_transformers.schema import MIXTURE_LEAVES, parse_mixture
from mixture_transformers.tensor_parallel import mixture_plan


class MixtureConfig:
    """Mixin of the configurations.

    Attributes:
        mixture: Block `mixture` of config.json; None in a default configuration, from which no
            model can be built.
        base_model_tp_plan: Tensor parallel plan of the base model.
    """

    def __init__(self, mixture: dict[str, Any] | None = None, **kwargs: Any):
        if mixture is not None:
            parse_mixture(mixture)
        self.mixture = mixture
        super().__init__(**kwargs)
        self.base_model_tp_plan = mixture_plan(self.base_model_tp_plan, mixture)


class MixturePreTrained:
    """Mixin of the models, with and without an output head."""

    # Older releases of vLLM ignore this; `vllm_plugin` refuses them.
    _keep_in_fp32_modules_strict = ['router']  # noqa: RUF012 (transformers expects a list)

    def __init__(self, config: Any):
        # Check the block before the base model is built, which may take long.
        mixture = parse_mixture(config.mixture)
        super().__init__(config)
        adapt_layers(self.base_model.layers, mixture)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        base: str | os.PathLike[str] | None = None,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model from an export, with all weights or with the adapter alone.

        Args:
            pretrained_model_name_or_path: Directory or Hub name of the export; None if the keyword
                arguments `config` and `state_dict` are given.
            *model_args: Arguments as in `PreTrainedModel.from_pretrained`.
            base: Directory or Hub name of the base model of an adapter alone; None = the name in
                the adapter's config.json.
            config: Configuration, or the path from which it is loaded.
            output_loading_info: Whether to return a dictionary with missing and unexpected keys,
                too.
            **kwargs: Arguments as in `PreTrainedModel.from_pretrained`, such as `dtype` and
                `device_map`.

        Raises:
            ValueError: The export has no weights or lacks a tensor of the mixture, the base is not
                the one used in training, or `base` is given for an export with all weights.
        """
        export = source = pretrained_model_name_or_path
        arguments = kwargs | {'config': config}
        if export is not None and loading.is_adapter_alone(export, kwargs):
            arguments = loading.adapter_arguments(cls.config_class, export, base, config, kwargs)
            source = None
        elif base is not None:
            raise ValueError(f'{export} holds all weights: `base` is for an adapter alone.')
        arguments |= {'use_safetensors': True, 'output_loading_info': True}
        model, report = super().from_pretrained(source, *model_args, **arguments)
        _check_loaded(export or 'The state_dict', report['missing_keys'])
        if export is not None:
            model.name_or_path = model.config.name_or_path = str(export)
        return (model, report) if output_loading_info else model


def _check_loaded(name: Any, missing: set[str] | list[str]) -> None:
    """Check that no tensor of the mixture is missing, which transformers would set at random.

    Args:
        name: Name of the export, for the message.
        missing: Names of the missing tensors.

    Raises:
        ValueError: A tensor of the mixture is missing.
    """
    lacking = sorted(key for key in missing if key.endswith(MIXTURE_LEAVES))
    if lacking:
        raise ValueError(f'{name} has no tensor {lacking[0]!r}: export the model again.')

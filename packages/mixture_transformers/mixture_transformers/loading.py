"""Files of an exported mixture, and the weights of an adapter together with those of its base.

An export holds either all weights, in model.safetensors, or the adapter alone, in
mixture.safetensors. In the second case, the base weights come from another directory or the Hub.
Each of these files may be split into several files, which an index lists.
"""

import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from mixture_transformers.fingerprint import base_fingerprint
from mixture_transformers.schema import Mixture, parse_mixture

MIXTURE_WEIGHTS = 'mixture.safetensors'
# Keyword arguments of `from_pretrained` that locate files of the base model and of the export.
_BASE_HUB_OPTIONS = ('cache_dir', 'force_download', 'local_files_only', 'proxies', 'token')
_EXPORT_HUB_OPTIONS = (*_BASE_HUB_OPTIONS, 'revision', 'subfolder')

Path = str | os.PathLike[str]


def is_adapter_alone(path: Path, options: Mapping[str, Any]) -> bool:
    """Return whether an export holds the adapter alone, without the base weights.

    Args:
        path: Directory or Hub name of the export.
        options: Keyword arguments of `from_pretrained`.

    Raises:
        ValueError: The export has no weights.
    """
    hub_options = _select(options, _EXPORT_HUB_OPTIONS)
    if _find_file_or_index(path, SAFE_WEIGHTS_NAME, hub_options, options.get('variant')):
        return False
    if _find_file_or_index(path, MIXTURE_WEIGHTS, hub_options):
        return True
    raise ValueError(
        f'{path} has no weights: it needs {SAFE_WEIGHTS_NAME} or {MIXTURE_WEIGHTS}, or an index '
        'of several such files.'
    )


def adapter_arguments(
    config_class: type[PreTrainedConfig],
    path: Path,
    base: Path | None,
    config: PreTrainedConfig | Path | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return keyword arguments of `from_pretrained` that load an adapter with its base.

    Args:
        config_class: Class of the configuration.
        path: Directory or Hub name of the export.
        base: Directory or Hub name of the base model; None = the name in config.json.
        config: Configuration, or the path from which it is loaded; None = `path`.
        options: Other keyword arguments of `from_pretrained`.

    Returns:
        The keyword arguments `config`, `state_dict` and `generation_config`, and those of `options`
        that are not used here.

    Raises:
        ValueError: The configuration, the adapter or the base does not fit, or the base has no
            safetensors files.
    """
    hub_options = _select(options, _EXPORT_HUB_OPTIONS)
    rest = {name: value for name, value in options.items() if name not in hub_options}
    if not isinstance(config, PreTrainedConfig):
        # The dtype stays an argument, because 'auto' is not a valid dtype of a configuration.
        dtypes = {name: rest.pop(name) for name in ('dtype', 'torch_dtype') if name in rest}
        config, rest = config_class.from_pretrained(
            config or path, return_unused_kwargs=True, **hub_options, **rest
        )
        rest |= dtypes
    tensors = _merged_tensors(path, base, config, options)
    if 'generation_config' not in rest and _find(path, 'generation_config.json', hub_options):
        rest['generation_config'] = GenerationConfig.from_pretrained(path, **hub_options)
    return rest | {'config': config, 'state_dict': tensors}


def _merged_tensors(
    path: Path, base: Path | None, config: PreTrainedConfig, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the base and of the adapter, named as in a complete export."""
    mixture = parse_mixture(config.mixture)
    base = base or mixture.base_name
    tensors = _read_base(base, _select(options, _BASE_HUB_OPTIONS))
    fingerprint = base_fingerprint(tensors, config.tie_word_embeddings)
    if fingerprint != mixture.base_fingerprint:
        raise ValueError(
            f'{path} was trained on other base weights than those in {base} (fingerprint '
            f'{mixture.base_fingerprint}, not {fingerprint}): pass the base model of the training '
            'as `base`, such as an export with --format=base.'
        )
    hub_options = _select(options, _EXPORT_HUB_OPTIONS)
    file = _find_file_or_index(path, MIXTURE_WEIGHTS, hub_options)
    adapter = _read_weights(path, file, hub_options)
    modules = list(mixture.module_names(config.num_hidden_layers))
    _check_adapter(file, adapter, _adapter_shapes(mixture, modules, tensors))
    for module in modules:
        for leaf in ('weight', 'bias'):
            if f'{module}.{leaf}' in tensors:
                tensors[f'{module}.base.{leaf}'] = tensors.pop(f'{module}.{leaf}')
    return tensors | adapter


def _adapter_shapes(
    mixture: Mixture, modules: list[str], base: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, int]]:
    """Return the shapes of all tensors of the adapter, by name.

    Args:
        mixture: Settings of the mixture.
        modules: Names of the adapted linear layers.
        base: Tensors of the base model.
    """
    shapes = {}
    for module in modules:
        F, D = base[f'{module}.weight'].shape
        shapes |= {f'{module}.{name}': shape for name, shape in mixture.tensor_shapes(D, F).items()}
    return shapes


def _check_adapter(
    file: str, adapter: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Check that an adapter has exactly the tensors that it should have.

    Raises:
        ValueError: A tensor is missing, has another shape, or belongs to no adapted layer.
    """
    for name, shape in shapes.items():
        if name not in adapter:
            raise ValueError(f'{file} has no tensor {name!r}: export the adapter again.')
        if adapter[name].shape != shape:
            raise ValueError(
                f'{file}: tensor {name!r} has shape {tuple(adapter[name].shape)}; it must have '
                f'{shape}: export the adapter again.'
            )
    extra = sorted(adapter.keys() - shapes.keys())
    if extra:
        raise ValueError(
            f'{file} has a tensor {extra[0]!r} that belongs to no adapted layer: export the '
            'adapter again.'
        )


def _read_base(base: Path, hub_options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a base model."""
    reason: OSError | None = None
    try:
        file = _find_file_or_index(base, SAFE_WEIGHTS_NAME, hub_options)
    except OSError as error:
        file, reason = None, error
    if file is None:
        raise ValueError(
            f'The base model {base} is not found or has no {SAFE_WEIGHTS_NAME}: pass its directory '
            'or Hub name as `base`.'
        ) from reason
    return _read_weights(base, file, hub_options)


def _read_weights(path: Path, file: str, hub_options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file or, given an index, of all files that it lists.

    The tensors are mapped to memory, and read only when they are used.
    """
    files = [file]
    if file.endswith('.json'):
        files, _ = get_checkpoint_shard_files(path, file, **hub_options)
    tensors: dict[str, torch.Tensor] = {}
    for each in files:
        try:
            tensors |= safetensors.torch.load_file(each)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f'{each} is not a complete safetensors file ({error}): copy or download it again.'
            ) from error
    return tensors


def _find_file_or_index(
    path: Path, name: str, hub_options: Mapping[str, Any], variant: str | None = None
) -> str | None:
    """Return the path of a weight file or of the index of several files; None without both."""
    names = [name, f'{name}.index.json']
    if variant:
        # In model.half.safetensors and model.safetensors.index.half.json, for example.
        parts = [each.rpartition('.') for each in names]
        names = [f'{stem}.{variant}.{extension}' for stem, _, extension in parts]
    return _find(path, names[0], hub_options) or _find(path, names[1], hub_options)


def _find(path: Path, name: str, hub_options: Mapping[str, Any]) -> str | None:
    """Return the path of a file, downloaded if necessary; None if there is no such file."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_options)


def _select(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}

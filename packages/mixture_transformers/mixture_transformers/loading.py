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
_BASE_FILES = ('cache_dir', 'force_download', 'local_files_only', 'proxies', 'token')
_EXPORT_FILES = (*_BASE_FILES, 'revision', 'subfolder')

Path = str | os.PathLike[str]


def is_adapter_alone(path: Path, options: Mapping[str, Any]) -> bool:
    """Return whether an export holds the adapter alone, without the base weights.

    Args:
        path: Directory or Hub name of the export.
        options: Keyword arguments of `from_pretrained`.

    Raises:
        ValueError: The export has no weights.
    """
    where = _file_options(options, _EXPORT_FILES)
    if _find_weights(path, SAFE_WEIGHTS_NAME, where, options.get('variant')):
        return False
    if _find_weights(path, MIXTURE_WEIGHTS, where):
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
    where = _file_options(options, _EXPORT_FILES)
    rest = {name: value for name, value in options.items() if name not in where}
    if not isinstance(config, PreTrainedConfig):
        # The dtype stays an argument, because 'auto' is not a valid dtype of a configuration.
        dtypes = {name: rest.pop(name) for name in ('dtype', 'torch_dtype') if name in rest}
        config, rest = config_class.from_pretrained(
            config or path, return_unused_kwargs=True, **where, **rest
        )
        rest |= dtypes
    tensors = _merged_tensors(path, base, config, options)
    if 'generation_config' not in rest and _find(path, 'generation_config.json', where):
        rest['generation_config'] = GenerationConfig.from_pretrained(path, **where)
    return rest | {'config': config, 'state_dict': tensors}


def _merged_tensors(
    path: Path, base: Path | None, config: PreTrainedConfig, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the base and of the adapter, named as in a complete export."""
    mixture = parse_mixture(config.mixture)
    base = base or mixture.base_name
    tensors = _read_base(base, _file_options(options, _BASE_FILES))
    fingerprint = base_fingerprint(tensors, config.tie_word_embeddings)
    if fingerprint != mixture.base_fingerprint:
        raise ValueError(
            f'{path} was trained on other base weights than those in {base} (fingerprint '
            f'{mixture.base_fingerprint}, not {fingerprint}).'
        )
    where = _file_options(options, _EXPORT_FILES)
    file = _find_weights(path, MIXTURE_WEIGHTS, where)
    adapter = _read_weights(path, file, where)
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
            raise ValueError(f'{file} has no tensor {name!r}.')
        if adapter[name].shape != shape:
            raise ValueError(
                f'{file}: tensor {name!r} has shape {tuple(adapter[name].shape)}; it must have '
                f'{shape}.'
            )
    extra = sorted(adapter.keys() - shapes.keys())
    if extra:
        raise ValueError(f'{file} has a tensor {extra[0]!r} that belongs to no adapted layer.')


def _read_base(base: Path, where: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a base model."""
    reason: OSError | None = None
    try:
        file = _find_weights(base, SAFE_WEIGHTS_NAME, where)
    except OSError as error:
        file, reason = None, error
    if file is None:
        raise ValueError(
            f'The base model {base} is not found or has no {SAFE_WEIGHTS_NAME}: pass its directory '
            'or Hub name as `base`.'
        ) from reason
    return _read_weights(base, file, where)


def _read_weights(path: Path, file: str, where: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file or, given an index, of all files that it lists.

    The tensors are mapped to memory, and read only when they are used.
    """
    files = [file]
    if file.endswith('.json'):
        files, _ = get_checkpoint_shard_files(path, file, **where)
    tensors: dict[str, torch.Tensor] = {}
    for each in files:
        try:
            tensors |= safetensors.torch.load_file(each)
        except safetensors.SafetensorError as error:
            raise ValueError(f'{each} is not a complete safetensors file ({error}).') from error
    return tensors


def _find_weights(
    path: Path, name: str, where: Mapping[str, Any], variant: str | None = None
) -> str | None:
    """Return the path of a weight file or of the index of several files; None without both."""
    names = [name, f'{name}.index.json']
    if variant:
        # In model.half.safetensors and model.safetensors.index.half.json, for example.
        parts = [each.rpartition('.') for each in names]
        names = [f'{stem}.{variant}.{extension}' for stem, _, extension in parts]
    return _find(path, names[0], where) or _find(path, names[1], where)


def _find(path: Path, name: str, where: Mapping[str, Any]) -> str | None:
    """Return the path of a file, downloaded if necessary; None if there is no such file."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **where)


def _file_options(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}

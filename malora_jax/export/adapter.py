"""Export format `adapter`: a safetensors file, and a manifest that identifies the base model.

For example:

    adapter.write_adapter(trained, pathlib.Path('exports/malora'))
    trained = adapter.open_adapter(pathlib.Path('exports/malora')).load()
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from malora_jax import __version__, data, errors, files
from malora_jax.adapters import AdapterSettings
from malora_jax.adapters.settings import migrate_settings, settings_of
from malora_jax.adapters.trees import ADAPTER_COLLECTIONS, named_leaves
from malora_jax.export import fingerprints, tokenizer_files
from malora_jax.export.directory import atomic_directory
from malora_jax.export.trained_model import StoredModel, TrainedAdapter, TrainedModel
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.config import Llama3Scaling
from malora_jax.models.decoder import abstract_variables
from malora_jax.models.loading.base_model import LoadedBase

_FORMAT, _VERSION = 'malora_jax adapter', 1
_MANIFEST, _WEIGHTS = 'manifest.json', 'adapter.safetensors'
_REMEDY = 'export it again'


class _Model(TypedDict):
    name: str
    rope_scaling: dict[str, Any] | None


class _Manifest(TypedDict):
    format: Literal['malora_jax adapter']
    version: Literal[1]
    method: str
    step: int
    template: str
    adapter: dict[str, Any]
    model: _Model
    weights: str
    base: str
    tokenizer: str
    sha256: str


def is_adapter(directory: pathlib.Path) -> bool:
    """Return whether a directory holds an exported adapter."""
    return (directory / _MANIFEST).is_file()


def write_adapter(
    trained: TrainedModel, output: pathlib.Path, static_entry: Mapping[str, Any] | None = None
) -> None:
    """Export a trained adapter, then read the files again and compare them.

    Args:
        trained: Trained model.
        output: Directory to create.
        static_entry: Manifest entry that `static.static_lora` returns, if it made this adapter.

    Raises:
        UserError: The directory exists and is not empty.
        OSError: The files cannot be written, or differ when they are read again.
    """
    tensors = {
        f'{name}/{path}': np.asarray(leaf)
        for name in ADAPTER_COLLECTIONS
        for path, leaf in named_leaves(trained.variables.get(name, {}))
    }
    content = safetensors.numpy.save(tensors)
    model, adapter = trained.model.config, trained.model.adapter
    manifest = {
        'format': _FORMAT,
        'version': _VERSION,
        'made_by': f'malora_jax {__version__}',
        'method': trained.method,
        'step': trained.step,
        'template': trained.template.name,
        'prompts': tokenizer_files.special_token_ids(trained)
        | {'chat_template': tokenizer_files.chat_template(trained)},
        'adapter': dataclasses.asdict(settings_of(adapter)) if adapter else None,
        'model': dataclasses.asdict(model),
        'weights': trained.weights,
        'base': fingerprints.base_fingerprint(trained.base.params),
        'tokenizer': fingerprints.text_fingerprint(trained.base.tokenizer.tokenizer_json),
        'sha256': fingerprints.content_digest(content),
        'leaves': {path: list(array.shape) for path, array in tensors.items()},
    } | ({'static': static_entry} if static_entry else {})
    with atomic_directory(output) as temporary:
        (temporary / _WEIGHTS).write_bytes(content)
        files.write_json(temporary / _MANIFEST, manifest)
        again = open_adapter(temporary).restore(trained.base)
        for name in ADAPTER_COLLECTIONS:
            before, after = (
                dict(named_leaves(each.variables.get(name, {}))) for each in (trained, again)
            )
            if before.keys() != after.keys() or not all(
                np.array_equal(before[path], after[path]) for path in before
            ):
                raise OSError(f'{output}: the files differ from what was written.')


def open_adapter(directory: pathlib.Path, weights: str | None = None) -> StoredModel:
    """Return an exported adapter, whose weights are not loaded yet.

    Args:
        directory: Directory of the export.
        weights: Location of the base weights: a GGUF file, a directory, or a model name on the
            Hugging Face Hub; '' = the default of the model's preset, None = the location that was
            used in training.

    Raises:
        UserError: The manifest is broken or has a newer version.
        FileNotFoundError: There is no manifest.
    """
    path = directory / _MANIFEST
    stored = files.read_json(path, dict, _REMEDY)
    if stored.get('format') != _FORMAT:
        raise errors.UserError(f'{path} is not the manifest of an exported adapter.')
    version = stored.get('version')
    if type(version) is int and version > _VERSION:
        maker = errors.short_repr(str(stored.get('made_by')))[1:-1]
        raise errors.UserError(
            f'{path} has version {errors.short_repr(version)}, made by {maker}; '
            f'malora_jax {__version__} reads versions up to {_VERSION}: upgrade malora_jax.'
        )
    files.check_content(_Manifest, stored, str(path), _REMEDY)
    manifest = {**stored, 'weights': stored['weights'] if weights is None else weights}
    scaling = manifest['model']['rope_scaling']
    try:
        model = ModelConfig(
            **manifest['model'] | {'rope_scaling': Llama3Scaling(**scaling) if scaling else None}
        )
        fields: dict[str, Any] = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in migrate_settings(manifest['adapter']).items()
        }
        adapter = AdapterSettings(**fields).build()
    except (TypeError, errors.UserError) as error:
        reason = ' '.join(str(error).split())
        raise errors.UserError(f'{path} is broken ({reason}): {_REMEDY}.') from error
    stored_in = directory, manifest, Decoder(model, adapter)
    return StoredModel(
        directory,
        model,
        manifest['weights'],
        functools.partial(_restore, *stored_in),
        functools.partial(_load_adapter, *stored_in),
    )


def _restore(
    directory: pathlib.Path, manifest: dict[str, Any], model: Decoder, base: LoadedBase
) -> TrainedModel:
    _check_base(directory, manifest, base)
    return TrainedModel(
        base,
        model,
        {'params': base.params} | _variables(directory, manifest, model),
        data.get_template(manifest['template']),
        manifest['method'],
        manifest['weights'],
        manifest['step'],
    )


def _load_adapter(
    directory: pathlib.Path, manifest: dict[str, Any], model: Decoder
) -> TrainedAdapter:
    fields = (manifest[name] for name in ('method', 'weights', 'step', 'base'))
    return TrainedAdapter(model, _variables(directory, manifest, model), *fields)


def _variables(directory: pathlib.Path, manifest: dict[str, Any], model: Decoder) -> dict[str, Any]:
    """Return the variable collections of an exported adapter, after checking its file."""
    path = directory / _WEIGHTS
    content = path.read_bytes() if path.is_file() else b''
    if fingerprints.content_digest(content) != manifest['sha256']:
        raise errors.UserError(
            f'{path} is missing or does not match the digest in {_MANIFEST}: export it again.'
        )
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise errors.UserError(
            f'{path} is not a safetensors file that can be read ({error}): {_REMEDY}.'
        ) from error
    shapes = nn.unbox(abstract_variables(model))
    return {
        name: _tree(directory, name, shapes[name], tensors)
        for name in ADAPTER_COLLECTIONS
        if name in shapes
    }


def _tree(directory: pathlib.Path, name: str, shapes: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Return one variable collection of an export, after checking the shapes of its arrays.

    Args:
        directory: Directory of the export, for messages.
        name: Name of the collection.
        shapes: Expected collection, with a `jax.ShapeDtypeStruct` in place of each array.
        tensors: All arrays of the export, by collection and leaf path.

    Raises:
        UserError: A tensor is missing or has another shape.
    """
    arrays = {}
    for path, leaf in named_leaves(shapes):
        tensor = tensors.get(f'{name}/{path}')
        if tensor is None or tensor.shape != leaf.shape:
            what = 'is missing' if tensor is None else f'has shape {tensor.shape}'
            raise errors.UserError(
                f'{directory / _WEIGHTS}: {name}/{path} {what}; it must have {leaf.shape}.'
            )
        arrays[path] = jnp.asarray(tensor)
    return unflatten_dict(arrays, sep='/')


def _check_base(directory: pathlib.Path, manifest: dict[str, Any], base: LoadedBase) -> None:
    name, ours = manifest['model']['name'], fingerprints.base_fingerprint(base.params)
    if ours != manifest['base']:
        raise errors.UserError(
            f'{directory} was trained on other base weights of {name} than those loaded '
            f'(fingerprint {manifest["base"]}, not {ours}).'
        )
    tokenizer = fingerprints.text_fingerprint(base.tokenizer.tokenizer_json)
    if tokenizer != manifest['tokenizer']:
        raise errors.UserError(
            f'{directory} was trained with another tokenizer than the one loaded with {name} '
            f'(fingerprint {manifest["tokenizer"]}, not {tokenizer}).'
        )

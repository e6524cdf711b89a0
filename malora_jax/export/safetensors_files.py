"""Weights in safetensors files of limited size, as `transformers` reads them."""

import pathlib
from collections.abc import Mapping

import huggingface_hub
import numpy as np
import safetensors.numpy

from malora_jax import files

# Maximum size of a file in bytes, unless a single tensor is larger.
MAX_BYTES = 5_000_000_000


def write_shards(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to one file, or to several files and an index if they exceed `MAX_BYTES`.

    Args:
        path: Path of the file, such as `model.safetensors`. Several files are named
            `model-00001-of-00002.safetensors`, and their index `model.safetensors.index.json`.
        tensors: Tensors by name.
    """
    split = huggingface_hub.split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f'{path.stem}{{suffix}}{path.suffix}',
        max_shard_size=MAX_BYTES,
    )
    for name, own in split.filename_to_tensors.items():
        safetensors.numpy.save_file(
            {each: tensors[each] for each in own}, path.with_name(name), metadata={'format': 'pt'}
        )
    if split.is_sharded:
        index = {'metadata': split.metadata, 'weight_map': split.tensor_to_filename}
        files.write_json(path.with_name(f'{path.name}.index.json'), index)

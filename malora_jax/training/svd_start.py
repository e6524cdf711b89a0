"""Start of a run from singular directions of the frozen kernels, computed one kernel at a time.

Dimension letters: L layers, D inputs and F outputs of a linear layer, P ranks of all experts.
"""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from malora_jax import files
from malora_jax.adapters.goat import GOAT, SingularDirections, singular_directions
from malora_jax.adapters.trees import parent_module
from malora_jax.distributed import hosts, sharding
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.models import Decoder
from malora_jax.models.quantize import QuantizedKernel
from malora_jax.training.state import TrainState


def svd_start(state: TrainState, model: Decoder, params: Any) -> TrainState:
    """Return a state before the first step whose experts hold singular directions of the kernels.

    The singular directions of a linear layer are stored in the user's cache directory, from which
    later runs on the same base model read them. With several processes, nothing is stored, and each
    process decomposes all kernels.

    Args:
        state: Freshly initialized state of the run.
        model: Decoder of the run; the structure of its adapter is `GOAT`.
        params: Parameters of the base model.
    """
    adapter, start_time = model.adapter, time.perf_counter()
    assert adapter is not None
    structure = adapter.structure
    assert isinstance(structure, GOAT)
    cache = _cache_directory(model, structure, params)
    found: dict[str, np.ndarray] = {}
    kernels = model.config.num_layers * len(adapter.targets)
    with hosts.progress_bar('singular directions', kernels, 'kernel') as bar:
        bar.update(0)
        for target in adapter.targets:
            linear, path = (
                params['layers'][parent_module(target)][target],
                cache / f'{target}.safetensors',
            )
            directions = _read(path)
            if directions is None:
                directions = _decompose(structure, model, linear)
                _write(path, directions)
            leaves = structure.start_leaves(directions, adapter.scale)
            prefix = f'layers/{parent_module(target)}/{target}'
            found |= {f'{prefix}/{name}': leaf for name, leaf in leaves.items()}
            bar.advance(model.config.num_layers)
    seconds = time.perf_counter() - start_time
    hosts.print_on_first(f'Singular directions of {kernels} kernels: {seconds:.1f} s ({cache}).')

    fresh = state.leaves()
    return state.replace_leaves(
        {path: jax.device_put(leaf, fresh[path].sharding) for path, leaf in found.items()}
    )


def _decompose(
    structure: GOAT, model: Decoder, linear: Mapping[str, jax.Array]
) -> SingularDirections:
    """Return the singular directions of one linear layer in all layers, with a leading axis L."""
    weights = {name: linear[name] for name in ('kernel', 'kernel_scale') if name in linear}
    layers = []
    for layer in range(model.config.num_layers):
        kernel_DF = np.asarray(_layer_kernel(model.config.quantize, weights, layer))
        layers.append(singular_directions(kernel_DF, structure.segment_indices(*kernel_DF.shape)))
    return SingularDirections(*map(np.stack, zip(*layers, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _layer_kernel(quantize: str, weights: Mapping[str, jax.Array], layer: jax.Array) -> jax.Array:
    """Return the dequantized kernel of one layer, (D, F) float32, on every device."""
    own = {name: leaf[layer] for name, leaf in weights.items()}
    if quantize:
        return sharding.replicate(
            QuantizedKernel(own['kernel'], own['kernel_scale'], quantize).dequantize()
        )
    return sharding.replicate(own['kernel'].astype(jnp.float32))


def _cache_directory(model: Decoder, structure: GOAT, params: Any) -> pathlib.Path:
    """Return the directory of cached singular directions, which depend on all parts of its name."""
    name = f'{base_fingerprint(params)}-{model.config.dtype}'
    experts = f'{structure.num_experts}x{structure.rank}'
    return files.user_cache_directory('singular_directions') / f'{name}-{experts}'


def _read(path: pathlib.Path) -> SingularDirections | None:
    """Return cached singular directions; None if there are none, or if the file is broken."""
    # With a file in some processes only, the others would wait for them to gather the kernels.
    if jax.process_count() > 1:
        return None
    try:
        return SingularDirections(**safetensors.numpy.load_file(path))
    except (OSError, TypeError, safetensors.SafetensorError):
        return None


def _write(path: pathlib.Path, directions: SingularDirections) -> None:
    if jax.process_count() > 1:
        return
    # Runs that start at the same time write different files.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.safetensors')
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(each) for name, each in directions._asdict().items()},
            temporary,
        )
        os.replace(temporary, path)
    except OSError as error:
        print(f'The singular directions are not cached: {error}.', flush=True)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

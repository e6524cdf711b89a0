"""The training step as the TPU compiler sees it, on a host without a TPU.

Whether it fits, what it takes of each device's memory, what devices send each other, and an
estimate of its cycles. Needs the package `libtpu`. Nothing is allocated.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from malora_jax import errors
from malora_jax.distributed import hlo, rules
from malora_jax.distributed.mesh import make_mesh
from malora_jax.distributed.topology import tpu_devices
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import abstract_state
from malora_jax.training.step import lowered_step

# Of the compiler's verdict: 'Used 20.98G of 15.75G hbm.'
_USED = re.compile(r'Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


def compiled_for(run: RunConfig, topology: str) -> dict[str, Any]:
    """What the compiler says of a run's step on a topology.

    Args:
        run: with the mesh that the chips are to form, and the rows of all of them together.
        topology: such as 'v5e:4x4'.

    Returns:
        `name`, `devices`, `mesh`, `fits`, `bytes_per_device`; if it fits `bytes` by part,
        `collective_bytes` by kind and `estimated_cycles`, of one device and one step; and else
        `change`: fields with which it fits, if such were found.

    Raises:
        UserError: no such topology, no compiler for it, or a mesh that it cannot form.
    """
    devices = tpu_devices(topology)
    found = _verdict(run, devices)
    if not found['fits']:
        found['change'] = _mended(run, devices, found['mesh'])
    return {'name': topology, 'devices': len(devices)} | found


def _verdict(run: RunConfig, devices: list[Any]) -> dict[str, Any]:
    mesh = make_mesh(run.mesh, devices)
    shape = {'mesh': dict(mesh.shape)}
    try:
        compiled = compiled_step(run, mesh)
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if not used:
            raise errors.UserError(
                f'The TPU compiler refuses the step: {str(error).splitlines()[0]}'
            ) from error
        return shape | {
            'fits': False,
            'bytes_per_device': _bytes(used[1], used[2]),
            'bytes_there_are': _bytes(used[3], used[4]),
        }
    memory: Any = compiled.memory_analysis()
    program = _program(compiled)
    parts = {
        'arguments': memory.argument_size_in_bytes,
        'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
        'temporary': memory.temp_size_in_bytes,
        'program': memory.generated_code_size_in_bytes,
    }
    return shape | {
        'fits': True,
        'bytes_per_device': sum(parts.values()),
        'bytes': parts,
        'collective_bytes': program.bytes_by_kind(),
        'estimated_cycles': program.cycles(),
    }


def compiled_step(run: RunConfig, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """A run's training step, compiled for the devices of a mesh; all it is given are shapes.

    Raises:
        UserError: the rows cannot be shared among them.
        jax.errors.JaxRuntimeError: it does not fit, or the compiler refuses it.
    """
    with jax.set_mesh(mesh):
        rules.check_rows('data.batch_size', run.data.batch_size)
        model = Decoder(run.model, run.adapter, run.training.remat)
        steps = run.training.steps or 1  # Epochs come to a number only with the data.
        params = rules.abstract(abstract_variables(model)['params'])
        state = abstract_state(model, make_optimizer(run.optimizer, steps), params)
        num_tasks = len(run.data.tasks) + len(run.data.file_tasks)
        numbers = Hyperparameters.of(run.seed, run.optimizer, run.adapter)
        return lowered_step(run, steps, num_tasks, state, params, numbers).compile()


def _program(compiled: jax.stages.Compiled) -> hlo.Program:
    try:
        return hlo.Program(compiled.as_text() or '')
    except jax.errors.JaxRuntimeError as error:
        raise errors.UserError(
            'This JAX cannot read what the TPU compiler makes: install the libtpu that belongs to '
            "it, pip install 'malora_jax[tpu-plan]'."
        ) from error


def _mended(run: RunConfig, devices: list[Any], sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """The first change of a few, gentle ones first, that makes it fit."""
    for change in _changes(run, sizes):
        mesh = dataclasses.replace(run.mesh, **change.get('mesh', {}))
        training = dataclasses.replace(run.training, **change.get('training', {}))
        data = dataclasses.replace(run.data, **change.get('data', {}))
        changed = dataclasses.replace(run, mesh=mesh, training=training, data=data)
        try:
            found = _verdict(changed, devices)
        except errors.UserError:  # Such a mesh does not suit the model.
            continue
        if found['fits']:
            fields = {
                f'{section}.{name}': value
                for section, values in change.items()
                for name, value in values.items()
            }
            return fields | {'bytes_per_device': found['bytes_per_device']}
    return None


def _changes(run: RunConfig, sizes: Mapping[str, int]) -> Iterator[dict[str, dict[str, Any]]]:
    """More of the model on other devices, then more computed anew, then fewer rows at a time."""
    mesh: dict[str, dict[str, Any]] = {}
    if sizes['data'] > 1:
        mesh = {'mesh': {'data': 1, 'fsdp': sizes['data'] * sizes['fsdp']}}
        yield mesh
    change = dict(mesh)
    if run.training.remat != 'full':
        change = mesh | {'training': {'remat': 'full'}}
        yield change
    rows, accumulate = run.data.batch_size, run.training.accumulate
    least = sizes['data'] * sizes['fsdp']
    while rows % 2 == 0 and rows // 2 % least == 0:
        rows, accumulate = rows // 2, accumulate * 2
        training = change.get('training', {}) | {'accumulate': accumulate}
        yield change | {'data': {'batch_size': rows}, 'training': training}


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])

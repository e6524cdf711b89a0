"""Compilation of the training step for a TPU slice or for GPUs, on a host without them.

The compiled program says how much memory the step needs, whether it fits, how much data the devices
exchange, and on TPUs an estimate of its cycles. This needs the package `libtpu`, or JAX's plugin
for CUDA. Nothing is allocated.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from malora_jax import errors
from malora_jax.distributed import hlo, sharding
from malora_jax.distributed.gpus import GPU
from malora_jax.distributed.mesh import make_mesh
from malora_jax.distributed.topology import Topology, get_topology
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.memory_estimate import USABLE_SHARE
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import abstract_state
from malora_jax.training.step import lower_train_step

# Matches the compiler's out-of-memory messages: 'Used 20.98G of 15.75G hbm.', or 'the total memory
# required for HLO temporaries (17.41G) exceeds available HBM (15.75G)', without the arguments.
_OUT_OF_MEMORY = re.compile(
    r'(?:Used |temporaries \()([\d.]+)([KMG])\)? (?:of |exceeds available HBM \()([\d.]+)([KMG])'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
# Share of a GPU's memory that JAX reserves by default; the variable that sets this share, and the
# value for steps that need more.
_DEFAULT_GPU_SHARE = 0.75
_GPU_SHARE_VARIABLE, _LARGE_GPU_SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION', 0.95


def compile_for_topology(run: RunConfig, topology: str) -> dict[str, Any]:
    """Compile the training step of a run for a topology, and return the compiler's estimates.

    Args:
        run: Config of the run. Its `mesh` must match the number of devices, and `data.batch_size`
            is the number of rows on all devices together.
        topology: Name of the topology, such as 'v5e:4x4' or 'h100:8'.

    Returns:
        `name`, `devices`, `attention` (the backend), `mesh`, `fits` and `bytes_per_device`. If the
        step is compiled: `bytes` by part of the memory and `collective_bytes` by kind of
        collective, for one device and one step, and for TPUs `estimated_cycles`, which do not
        include an attention kernel. The TPU compiler rejects a step that does not fit, and may then
        count only the temporary memory in `bytes_per_device`.

        If the step does not fit: `bytes_there_are`, the usable memory of a device, and `change`, a
        change of the config with which the step fits. `change` has the new values by dotted field
        name, and the `bytes_per_device` of the changed step. It is None if no change was found.

        For GPUs: `checked`, whether the tests cover this GPU; and `environment`, the environment
        variables that the run needs because JAX by default reserves only a part of the memory. If
        only the changed step needs them, they are in `change`.

    Raises:
        UserError: The topology is unknown, its compiler is missing or does not match JAX, the
            topology cannot form the mesh, the rows cannot be split over the mesh, or the compiler
            rejects the step.
    """
    target = get_topology(topology)
    report = _compile_report(run, target)
    if not report['fits']:
        report['change'] = _find_fitting_change(run, target, report['mesh'])
    attention = run.choose_attention(target.devices[0]).backend
    return {'name': topology, 'devices': len(target.devices), 'attention': attention} | report


def _compile_report(run: RunConfig, topology: Topology) -> dict[str, Any]:
    mesh = make_mesh(run.mesh, topology.devices)
    report: dict[str, Any] = {'mesh': dict(mesh.shape)}
    try:
        compiled = compiled_step(run, mesh)
    except jax.errors.JaxRuntimeError as error:
        used = _OUT_OF_MEMORY.search(str(error))
        if not used:
            raise errors.UserError(
                f'The compiler rejects the training step: {str(error).splitlines()[0]}'
            ) from error
        return report | {
            'fits': False,
            'bytes_per_device': _bytes(used[1], used[2]),
            'bytes_there_are': _bytes(used[3], used[4]),
        }
    memory: Any = compiled.memory_analysis()
    if topology.gpu is None:
        program = _tpu_program(compiled)
    else:
        program = hlo.Program(compiled.as_text() or '')
    parts = {
        'arguments': memory.argument_size_in_bytes,
        'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
        'temporary': memory.temp_size_in_bytes,
        'program': memory.generated_code_size_in_bytes,
    }
    needed = sum(parts.values())
    report |= {'fits': True, 'bytes_per_device': needed}
    if topology.gpu is not None:
        report |= _gpu_limits(topology.gpu, needed)
    report |= {'bytes': parts, 'collective_bytes': program.bytes_by_kind()}
    if topology.gpu is None:
        report['estimated_cycles'] = program.cycles()
    return report


def _gpu_limits(gpu: GPU, needed: int) -> dict[str, Any]:
    """Return what a plan says about the memory of a GPU, which the compiler does not enforce."""
    usable = int(USABLE_SHARE * gpu.memory_bytes)
    limits: dict[str, Any] = {'checked': gpu.checked}
    if needed > usable:
        return limits | {'fits': False, 'bytes_there_are': usable}
    # The same part of the reserved memory stays free with both shares.
    if needed * _LARGE_GPU_SHARE > usable * _DEFAULT_GPU_SHARE:
        limits['environment'] = {_GPU_SHARE_VARIABLE: f'{_LARGE_GPU_SHARE}'}
    return limits


def compiled_step(run: RunConfig, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compile the training step of a run for the devices of a mesh, from shapes alone.

    Args:
        run: Config of the run.
        mesh: Mesh of the devices, which need not be attached to this host.

    Raises:
        UserError: The rows cannot be split over the mesh.
        jax.errors.JaxRuntimeError: The step does not fit into memory, or the compiler rejects it.
    """
    with jax.set_mesh(mesh):
        sharding.check_rows_divisible('data.batch_size', run.data.batch_size)
        run = run.for_device(mesh.devices.flat[0])
        model = Decoder(run.model, run.adapter, run.training.remat, run.attention)
        # The number of steps of a run by epochs is known only once its data are loaded.
        steps = run.training.steps or 1
        params = sharding.sharded_shapes(abstract_variables(model)['params'])
        state = abstract_state(model, make_optimizer(run.optimizer, steps), params)
        num_tasks = len(run.data.tasks) + len(run.data.file_tasks)
        numbers = Hyperparameters.from_configs(run.seed, run.optimizer, run.adapter)
        return lower_train_step(run, steps, num_tasks, state, params, numbers).compile()


def _tpu_program(compiled: jax.stages.Compiled) -> hlo.Program:
    try:
        return hlo.Program(compiled.as_text() or '')
    except jax.errors.JaxRuntimeError as error:
        problem = (
            'The installed libtpu does not match this version of JAX, which cannot read its output'
        )
        raise errors.missing_extra(problem, 'tpu-plan') from error


def _find_fitting_change(
    run: RunConfig, topology: Topology, sizes: Mapping[str, int]
) -> dict[str, Any] | None:
    """Return the first of `_memory_saving_changes` with which the step fits into device memory.

    Args:
        run: Config of the run, whose step does not fit.
        topology: Devices to compile for.
        sizes: Number of devices along each axis of the run's mesh.

    Returns:
        A dict with the changed config fields by dotted name, and `bytes_per_device`, the memory of
        the changed step, and for a GPU `environment` if the step needs it. None if no change makes
        the step fit.
    """
    for change in _memory_saving_changes(run, sizes):
        mesh = dataclasses.replace(run.mesh, **change.get('mesh', {}))
        training = dataclasses.replace(run.training, **change.get('training', {}))
        data = dataclasses.replace(run.data, **change.get('data', {}))
        changed = dataclasses.replace(run, mesh=mesh, training=training, data=data)
        try:
            report = _compile_report(changed, topology)
        except errors.UserError:  # The model cannot be sharded over this mesh.
            continue
        if report['fits']:
            fields = {
                f'{section}.{name}': value
                for section, values in change.items()
                for name, value in values.items()
            }
            return fields | {
                key: report[key] for key in ('bytes_per_device', 'environment') if key in report
            }
    return None


def _memory_saving_changes(
    run: RunConfig, sizes: Mapping[str, int]
) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield config changes that reduce memory: FSDP, then full remat, then smaller micro-batches.

    Each change includes the changes before it. Halving `data.batch_size` doubles
    `training.accumulate` (gradient accumulation), so that a step has the same number of rows.
    """
    mesh: dict[str, dict[str, Any]] = {}
    if sizes['data'] > 1:
        mesh = {'mesh': {'data': 1, 'fsdp': sizes['data'] * sizes['fsdp']}}
        yield mesh
    change = dict(mesh)
    if run.training.remat != 'full':
        change = mesh | {'training': {'remat': 'full'}}
        yield change
    rows, accumulate = run.data.batch_size, run.training.accumulate
    row_shards = sizes['data'] * sizes['fsdp']
    while rows % 2 == 0 and rows // 2 % row_shards == 0:
        rows, accumulate = rows // 2, accumulate * 2
        training = change.get('training', {}) | {'accumulate': accumulate}
        yield change | {'data': {'batch_size': rows}, 'training': training}


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])

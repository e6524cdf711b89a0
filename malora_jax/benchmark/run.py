"""Benchmarks of the training step of several methods, from a config."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import METHODS, method
from malora_jax.adapters.settings import with_tasks
from malora_jax.benchmark import adapter_sizes, compiler_estimates, input_batches, report, timing
from malora_jax.benchmark.machine import machine
from malora_jax.benchmark.timed_steps import BASE, compile_base_step, compile_method_step
from malora_jax.models import Decoder
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.setup import build_setup
from malora_jax.training.step import Batch
from malora_jax.training.workdir import package_versions

# Number of distinct batches, which the rounds repeat. More batches would not change the work.
_NUM_BATCHES = 8


def benchmark(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool
) -> dict[str, Any]:
    """Measure the training steps of several methods, interleaved in this process.

    Each method has its settings from `METHODS`, except for the dropout rate and the adapted linear
    layers, which are those of the config.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; 'base' is the frozen base model alone.
        rounds: Minimum number of timed steps per method.
        packed: Whether the batches are packed rows of the config's tasks. Otherwise they are random
            tokens, and the base model is randomly initialized, so that no weights are needed.

    Returns:
        `methods`, the statistics of `report.summarize` by method; `machine`, the hardware and
        software; and the conditions of the measurement: `model`, `dtype`, `quantize`, `rows`,
        `tokens_per_step`, `loss_tokens_per_step`, `positions_per_step`, `sequence_length`,
        `dropout`, `remat`.

    Raises:
        UserError: A method is unknown or named twice, or the config is invalid.
    """
    _check_names(methods)
    run = run_config(config)
    workload = _make_workload(run, packed)
    tasks = run.task_names if packed else input_batches.SYNTHETIC_TASKS
    runs = {name: None if name == BASE else with_method(run, name, tasks) for name in methods}
    return _conditions(workload) | {
        'methods': _measure(workload, runs, rounds),
        'machine': machine(),
    }


def benchmark_sizes(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool, field: str
) -> dict[str, Any]:
    """Measure methods with increasing numbers of experts, or with increasing ranks.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; the base model is always measured as well.
        rounds: Minimum number of timed steps per method and size.
        packed: Whether the batches are packed rows of the config's tasks; see `benchmark`.
        field: Name of the varied field, a key of `adapter_sizes.SIZES`.

    Returns:
        The result of `benchmark`, with `field` and `sizes` instead of `methods`. `sizes` holds the
        statistics by size and method.

    Raises:
        UserError: A method is unknown or named twice, or the config is invalid.
    """
    _check_names(methods)
    run = run_config(config)
    workload = _make_workload(run, packed)
    tasks = run.task_names if packed else input_batches.SYNTHETIC_TASKS
    sizes = {}
    for size in adapter_sizes.SIZES[field]:
        print(f'{field} = {size}:', flush=True)
        runs: dict[str, RunConfig | None] = {BASE: None}
        for name in methods:
            if name != BASE:
                method_run = with_method(run, name, tasks)
                adapter = adapter_sizes.resize_adapter(
                    method_run.adapter, field, size, run.model.width
                )
                runs[name] = dataclasses.replace(method_run, adapter=adapter)
        sizes[size] = _measure(workload, runs, rounds)
    return _conditions(workload) | {'field': field, 'sizes': sizes, 'machine': machine()}


@dataclasses.dataclass(frozen=True)
class _Workload:
    """Conditions that all methods of a benchmark share.

    Attributes:
        run: Config of the benchmark.
        packed: Whether the batches are packed rows of the config's tasks.
        params: Parameters of the base model.
        batches: Batches to time the steps on. Each round of the measurement uses one batch; after
            the last batch, the first is used again.
        tasks: Number of tasks in the batches.
    """

    run: RunConfig
    packed: bool
    params: Any
    batches: Sequence[Batch]
    tasks: int


def _make_workload(run: RunConfig, packed: bool) -> _Workload:
    # The compilation cache is disabled, so that compile times are those of a first start.
    jax.config.update('jax_enable_compilation_cache', False)
    if packed:
        setup = build_setup(run)
        batches = input_batches.packed_batches(setup, _NUM_BATCHES)
        return _Workload(run, packed, setup.base.params, batches, len(setup.splits))
    return _Workload(
        run,
        packed,
        random_base_params(run),
        input_batches.synthetic_batches(run, _NUM_BATCHES),
        len(input_batches.SYNTHETIC_TASKS),
    )


def _conditions(workload: _Workload) -> dict[str, Any]:
    run = workload.run
    return {
        'model': run.model.name,
        'dtype': run.model.dtype,
        'quantize': run.model.quantize,
        'rows': 'packed' if workload.packed else 'synthetic',
        'tokens_per_step': input_batches.real_tokens(workload.batches),
        'loss_tokens_per_step': input_batches.loss_tokens(workload.batches),
        'positions_per_step': workload.batches[0]['inputs'].size,
        'sequence_length': run.data.sequence_length,
        'dropout': run.adapter.dropout,
        'remat': run.training.remat,
    }


def _measure(
    workload: _Workload, runs: Mapping[str, RunConfig | None], rounds: int
) -> dict[str, dict[str, Any]]:
    """Measure the training step of each run, and return the statistics by the name of the run.

    If the config of a run is None, the base model alone is measured.
    """
    timed_steps = []
    for name, run in runs.items():
        print(f'Compiling {name} …', flush=True)
        if run is None:
            timed_steps.append(
                compile_base_step(workload.run, workload.params, workload.batches[0])
            )
        else:
            timed_steps.append(
                compile_method_step(name, run, workload.params, workload.batches[0], workload.tasks)
            )
    times = timing.measure(timed_steps, workload.batches, rounds)
    positions = workload.batches[0]['inputs'].size
    return report.summarize(
        timed_steps, times, input_batches.real_tokens(workload.batches), positions
    )


def estimate(config: Mapping[str, Any], methods: Sequence[str], topology: str) -> dict[str, Any]:
    """Return the compiler's estimates for one layer with each method; nothing is executed.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; 'base' is the layer without an adapter.
        topology: Name of a topology, such as 'v5e:2x2' or 'h100:1'; the estimates are for one of
            its devices.

    Returns:
        `methods`, the estimates of `compiler_estimates.estimate_layer` by method, and the
        conditions: `model`, `dtype`, `quantize`, `positions`, `sequence_length`, `dropout`,
        `remat`, `topology`, `versions`.

    Raises:
        UserError: A method is unknown or named twice, the config is invalid, the topology is
            unknown, or its compiler is not installed.
    """
    _check_names(methods)
    run = run_config(config)
    adapters = {name: None if name == BASE else with_method(run, name).adapter for name in methods}
    return {
        'model': run.model.name,
        'dtype': run.model.dtype,
        'quantize': run.model.quantize,
        'positions': run.data.batch_size * run.data.sequence_length,
        'sequence_length': run.data.sequence_length,
        'dropout': run.adapter.dropout,
        'remat': run.training.remat,
        'topology': topology,
        'methods': compiler_estimates.estimate_layer(run, adapters, topology),
        'versions': package_versions(),
    }


def _check_names(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in (BASE, *METHODS):
            raise errors.unknown_name('method', name, (BASE, *METHODS))
    if len({*methods}) < len(methods) or not methods:
        raise errors.out_of_range('--methods', ','.join(methods), 'one or more distinct names')


def with_method(
    run: RunConfig, name: str, tasks: Sequence[str] = input_batches.SYNTHETIC_TASKS
) -> RunConfig:
    """Return the config with the settings of another method.

    The dropout rate and the adapted linear layers stay the same.

    Args:
        run: Config of the benchmark.
        name: Name of the other method.
        tasks: Names of the tasks in the batches.
    """
    adapter = method(name, dropout=run.adapter.dropout, targets=run.adapter.targets)
    return dataclasses.replace(run, method=name, adapter=with_tasks(adapter, tasks))


def random_base_params(run: RunConfig) -> Any:
    """Return randomly initialized parameters of the base model."""

    @jax.jit
    def make(key: jax.Array) -> Any:
        one = jnp.ones((1, 1), jnp.int32)
        return nn.unbox(Decoder(run.model).init(key, one, one, one)['params'])

    return make(jax.random.key(run.seed))

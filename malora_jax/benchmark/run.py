"""Benchmarks of the training step of several methods, from a config."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import METHODS, method
from malora_jax.benchmark import compiled, growth, report, rows, timing
from malora_jax.benchmark.machine import machine
from malora_jax.benchmark.subjects import BASE, base_subject, method_subject
from malora_jax.models import Decoder
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.setup import build
from malora_jax.training.step import Batch
from malora_jax.training.workdir import versions

# Number of distinct batches, which the rounds repeat. More batches would not change the work.
_BATCHES = 8


def benchmark(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool
) -> dict[str, Any]:
    """Measure the training steps of several methods, interleaved in this process.

    Each method has its settings from `METHODS`, except for dropout and adapted linears, which are
    those of the config.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; 'base' is the frozen base model alone.
        rounds: Minimum number of timed steps per method.
        packed: Whether the batches are packed rows of the config's tasks. Otherwise they are random
            tokens, and the base model is randomly initialized, so that no weights are needed.

    Returns:
        `methods`, the statistics of `report.summarize` by method; `machine`; and the conditions:
        `model`, `dtype`, `quantize`, `rows`, `tokens_per_step`, `loss_tokens_per_step`,
        `positions_per_step`, `sequence_length`, `dropout`, `remat`.

    Raises:
        UserError: A method is unknown or named twice, or the config is invalid.
    """
    _check_names(methods)
    run = run_config(config)
    rig = _rig(run, packed)
    runs = {name: None if name == BASE else with_method(run, name) for name in methods}
    return _conditions(rig) | {'methods': _measure(rig, runs, rounds), 'machine': machine()}


def grow(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool, field: str
) -> dict[str, Any]:
    """Measure methods with increasing numbers of experts, or with increasing ranks.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; the base model is always measured as well.
        rounds: Minimum number of timed steps per method and size.
        packed: Whether the batches are packed rows of the config's tasks, see `benchmark`.
        field: Name of the varied field, a key of `growth.SIZES`.

    Returns:
        The result of `benchmark`, with `field` and `sizes` instead of `methods`: the statistics by
        size and method.

    Raises:
        UserError: A method is unknown or named twice, or the config is invalid.
    """
    _check_names(methods)
    run = run_config(config)
    rig = _rig(run, packed)
    sizes = {}
    for size in growth.SIZES[field]:
        print(f'{field} = {size}:', flush=True)
        runs: dict[str, RunConfig | None] = {BASE: None}
        for name in methods:
            if name != BASE:
                made = with_method(run, name)
                adapter = growth.grown(made.adapter, field, size, run.model.width)
                runs[name] = dataclasses.replace(made, adapter=adapter)
        sizes[size] = _measure(rig, runs, rounds)
    return _conditions(rig) | {'field': field, 'sizes': sizes, 'machine': machine()}


@dataclasses.dataclass(frozen=True)
class _Rig:
    """Conditions that all methods of a benchmark share.

    Attributes:
        run: Config of the benchmark.
        packed: Whether the batches are packed rows of the config's tasks.
        params: Parameters of the base model.
        batches: Batches, which the rounds repeat.
        tasks: Number of tasks in the batches.
    """

    run: RunConfig
    packed: bool
    params: Any
    batches: Sequence[Batch]
    tasks: int


def _rig(run: RunConfig, packed: bool) -> _Rig:
    # The compilation cache is disabled, so that compile times are those of a first start.
    jax.config.update('jax_enable_compilation_cache', False)
    if packed:
        setup = build(run)
        batches = rows.packed(setup, _BATCHES)
        return _Rig(run, packed, setup.base.params, batches, len(setup.splits))
    return _Rig(run, packed, random_base(run), rows.synthetic(run, _BATCHES), rows.SYNTHETIC_TASKS)


def _conditions(rig: _Rig) -> dict[str, Any]:
    run = rig.run
    return {
        'model': run.model.name,
        'dtype': run.model.dtype,
        'quantize': run.model.quantize,
        'rows': 'packed' if rig.packed else 'synthetic',
        'tokens_per_step': rows.real_tokens(rig.batches),
        'loss_tokens_per_step': rows.loss_tokens(rig.batches),
        'positions_per_step': rig.batches[0]['inputs'].size,
        'sequence_length': run.data.sequence_length,
        'dropout': run.adapter.dropout,
        'remat': run.training.remat,
    }


def _measure(
    rig: _Rig, runs: Mapping[str, RunConfig | None], rounds: int
) -> dict[str, dict[str, Any]]:
    """Return the statistics of each run's step by name; a run of None is the base model alone."""
    subjects = []
    for name, run in runs.items():
        print(f'Compiling {name} …', flush=True)
        if run is None:
            subjects.append(base_subject(rig.run, rig.params, rig.batches[0]))
        else:
            subjects.append(method_subject(name, run, rig.params, rig.batches[0], rig.tasks))
    times = timing.measure(subjects, rig.batches, rounds)
    positions = rig.batches[0]['inputs'].size
    return report.summarize(subjects, times, rows.real_tokens(rig.batches), positions)


def estimate(config: Mapping[str, Any], methods: Sequence[str], topology: str) -> dict[str, Any]:
    """Return the TPU compiler's estimates for one layer with each method; nothing is executed.

    Args:
        config: Nested config as written in configs/.
        methods: Names of methods; 'base' is the layer without an adapter.
        topology: Name of a TPU topology, such as 'v5e:2x2'; the estimates are for one of its chips.

    Returns:
        `methods`, the estimates of `compiled.estimates` by method, and the conditions: `model`,
        `dtype`, `quantize`, `positions`, `sequence_length`, `dropout`, `remat`, `topology`,
        `versions`.

    Raises:
        UserError: A method is unknown or named twice, the config is invalid, the topology is
            unknown, or `libtpu` is not installed.
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
        'methods': compiled.estimates(run, adapters, topology),
        'versions': versions(),
    }


def _check_names(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in (BASE, *METHODS):
            raise errors.unknown_name('method', name, (BASE, *METHODS))
    if len({*methods}) < len(methods) or not methods:
        raise errors.out_of_range('--methods', ','.join(methods), 'one name or more, each once')


def with_method(run: RunConfig, name: str) -> RunConfig:
    """Return the config with another method, but with its own dropout and adapted linears.

    Args:
        run: Config of the benchmark.
        name: Name of the method.
    """
    adapter = method(name, dropout=run.adapter.dropout, targets=run.adapter.targets)
    return dataclasses.replace(run, method=name, adapter=adapter)


def random_base(run: RunConfig) -> Any:
    """Return randomly initialized parameters of the base model."""

    @jax.jit
    def make(key: jax.Array) -> Any:
        one = jnp.ones((1, 1), jnp.int32)
        return nn.unbox(Decoder(run.model).init(key, one, one, one)['params'])

    return make(jax.random.key(run.seed))

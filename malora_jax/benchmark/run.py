"""A benchmark from a config: what takes turns, on which rows, and what came of it."""

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

# Batches that rounds go through; more would not be other work.
_BATCHES = 8


def benchmark(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool
) -> dict[str, Any]:
    """Measures methods side by side in this process.

    Each has its own settings, as `METHODS` has them, with the config's dropout and adapted linears.

    Args:
        config: as written in configs/.
        methods: their names; 'base' is the frozen model alone.
        rounds: how many steps of each are timed, at least.
        packed: whether the rows are those of the config's tasks; else random ones, which need no
            weights either.

    Returns:
        `methods` by name, `machine`, and what was run: `model`, `dtype`, `rows`, `tokens_per_step`,
        `loss_tokens_per_step`, `positions_per_step`, `sequence_length`, `dropout`, `remat`.

    Raises:
        UserError: no such method, one that is named twice, or a mistake in the config.
    """
    _check_names(methods)
    run = run_config(config)
    rig = _rig(run, packed)
    runs = {name: None if name == BASE else with_method(run, name) for name in methods}
    return _conditions(rig) | {'methods': _measure(rig, runs, rounds), 'machine': machine()}


def grow(
    config: Mapping[str, Any], methods: Sequence[str], rounds: int, packed: bool, field: str
) -> dict[str, Any]:
    """Measures methods with more and more experts, or ranks of an expert.

    Args:
        config: as written in configs/.
        methods: their names; the base is always measured beside them.
        rounds: how many steps of each are timed, at least, at every size.
        packed: as for `benchmark`.
        field: what grows, of `growth.SIZES`.

    Returns:
        As `benchmark`, but in place of `methods` the `field` and `sizes`: the methods at each.

    Raises:
        UserError: as `benchmark`.
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
    """What all methods are measured with: the config, the base, the batches and their tasks."""

    run: RunConfig
    packed: bool
    params: Any
    batches: Sequence[Batch]
    tasks: int


def _rig(run: RunConfig, packed: bool) -> _Rig:
    # Compile times are those of a first start.
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
    """Figures of each run's step, by name; None is the base alone."""
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
    """What the TPU compiler estimates for one layer with each method; nothing is run.

    Args:
        config: as written in configs/.
        methods: their names; 'base' is the layer alone.
        topology: such as 'v5e:2x2'; one of its chips.

    Returns:
        `methods` by name (see `compiled.estimates`), and what it was asked of.

    Raises:
        UserError: as `benchmark`, or no such topology.
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
    """The run with another method, and the dropout and adapted linears that it has."""
    adapter = method(name, dropout=run.adapter.dropout, targets=run.adapter.targets)
    return dataclasses.replace(run, method=name, adapter=adapter)


def random_base(run: RunConfig) -> Any:
    """Parameters of the base's shapes, as the decoder starts them without weights."""

    @jax.jit
    def make(key: jax.Array) -> Any:
        one = jnp.ones((1, 1), jnp.int32)
        return nn.unbox(Decoder(run.model).init(key, one, one, one)['params'])

    return make(jax.random.key(run.seed))

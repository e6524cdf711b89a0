"""Benchmark suite for one accelerator: throughput, model FLOPs utilization and memory of 8B LoRA.

Each case runs in a process of its own, because a device reports the peak of its memory only for the
whole life of a process.
"""

import concurrent.futures
import copy
import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from malora_jax import markdown
from malora_jax.adapters import method
from malora_jax.benchmark import input_batches
from malora_jax.benchmark.machine import machine
from malora_jax.benchmark.run import random_base_params
from malora_jax.benchmark.timed_steps import compile_method_step, time_part
from malora_jax.distributed.gpus import GPUS, find_gpu
from malora_jax.distributed.topology import disable_device_detection
from malora_jax.training.config import RunConfig, run_config
from malora_jax.training.topology_compile import compile_for_topology

# Settings of the methods that differ from `METHODS`. Peers publish their throughput for rank 16.
_METHODS: dict[str, dict[str, Any]] = {'lora': {'rank': 16}, 'malora': {}}
_NUM_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Model and batches of the suite.

    Attributes:
        model: Preset of the base model, which is randomly initialized.
        dtype: Dtype of its kernels and activations.
        lengths: Tokens per row, for one case each.
        tokens: Tokens per step, in as many rows as that takes.
    """

    model: str
    dtype: str
    lengths: tuple[int, ...]
    tokens: int


_ACCELERATOR = _Shapes('llama3.1-8b', 'bfloat16', (2048, 8192), 8192)
# Without an accelerator, the suite only shows that it works.
_CPU = _Shapes('tiny', 'float32', (32, 128), 128)


def accelerator_suite(config: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Measure the training step of LoRA and MALoRA on the first device of this host.

    The base model has the shapes of Llama 3.1 8B, or on a CPU those of a tiny model. The dropout
    rate is 0, and each row is a single example of random tokens.

    Args:
        config: Nested config as written in configs/. Its model, method, dropout rate and shape of a
            batch are replaced.
        rounds: Number of timed steps per case.

    Returns:
        `machine`; `model` and `dtype`; `peak_flops_per_s`, the peak of the device, or None if
        `GPUS` does not have it; and `cases`. Each case has `method`, `sequence_length`, `rows`, and
        either `error`, the first line of the device's error, or the results of `_measure` with
        `mfu`, the model FLOPs utilization. `planned_bytes` is the memory that
        `experiments.plan --topology` computes without the device. Values that are not known for
        this device are None.

    Raises:
        UserError: The config is invalid.
    """
    found = _in_new_process(machine)
    shapes = _CPU if found['platform'] == 'cpu' else _ACCELERATOR
    gpu = find_gpu(found['device'])
    peak = GPUS[gpu].peak_tflops * 1e12 if gpu else None
    cases = []
    for name in _METHODS:
        for length in shapes.lengths:
            run = _case_run(config, shapes, name, length)
            print(f'{name}, {run.data.batch_size} × {length} tokens …', flush=True)
            case = {'method': name, 'sequence_length': length, 'rows': run.data.batch_size}
            case['planned_bytes'] = _in_new_process(_plan, run, f'{gpu}:1') if gpu else None
            case |= _in_new_process(_measure, run, rounds)
            if 'error' not in case:
                case['mfu'] = case['flops_per_s'] / peak if peak else None
            cases.append(case)
    return {
        'machine': found,
        'model': shapes.model,
        'dtype': shapes.dtype,
        'peak_flops_per_s': peak,
        'cases': cases,
    }


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def _case_run(config: Mapping[str, Any], shapes: _Shapes, name: str, length: int) -> RunConfig:
    changed = copy.deepcopy(dict(config))
    changed['model'] |= {'name': shapes.model, 'dtype': shapes.dtype, 'weights': ''}
    changed['data'] |= {'sequence_length': length, 'batch_size': shapes.tokens // length}
    run = run_config(changed)
    adapter = method(name, **_METHODS[name], targets=run.adapter.targets, dropout=0.0)
    return dataclasses.replace(run, method=name, adapter=adapter)


def _plan(run: RunConfig, topology: str) -> int:
    disable_device_detection()
    return compile_for_topology(run, topology)['bytes_per_device']


def _measure(run: RunConfig, rounds: int) -> dict[str, Any]:
    """Compile the step of a run and time it.

    Args:
        run: Config of the case.
        rounds: Number of timed steps.

    Returns:
        `compile_s`; `step_s`, the median over the rounds; `tokens_per_s`; `flops_per_s`, the FLOPs
        of `plan.flops_per_token` per second; `compiled_bytes`, the memory of the step in the
        analysis of the compiler; and `peak_bytes`, the peak that the device reports, or None if it
        reports none or if the initialization of the base model had a higher one. If the device
        runs out of memory or rejects the step: only `error`.
    """
    # The compilation cache is disabled, so that compile times are those of a first start.
    jax.config.update('jax_enable_compilation_cache', False)
    batches = input_batches.synthetic_batches(run, _NUM_BATCHES)
    try:
        params = jax.block_until_ready(random_base_params(run))
        initial_peak = _peak_bytes()
        step = compile_method_step(
            run.method, run, params, batches[0], input_batches.NUM_SYNTHETIC_TASKS
        )
        seconds = [
            time_part(step.run_part, 'step', batches[number % _NUM_BATCHES])
            for number in range(rounds)
        ]
    except jax.errors.JaxRuntimeError as error:
        return {'error': str(error).splitlines()[0]}
    tokens_per_s = batches[0]['inputs'].size / float(np.median(seconds))
    peak = _peak_bytes()
    return {
        'compile_s': step.compile_s,
        'step_s': float(np.median(seconds)),
        'tokens_per_s': tokens_per_s,
        'flops_per_s': step.flops_per_token * tokens_per_s,
        'compiled_bytes': step.temporary_bytes + step.resident_bytes,
        'peak_bytes': peak if peak > initial_peak else None,
    }


def _peak_bytes() -> int:
    """Return the peak of the first device's memory; 0 if the device does not report it."""
    return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)


def format_table(cases: list[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the cases, with sizes in GB of 10⁹ bytes.

    Args:
        cases: Cases of the result of `accelerator_suite`.
    """
    sizes = ('planned_bytes', 'compiled_bytes', 'peak_bytes')
    rows = [
        [
            *('', 'rows', 'tokens/s', 'MFU', 'planned GB', 'compiled GB', 'peak GB', 'step, s'),
            'compile, s',
        ]
    ]
    for case in cases:
        cells = [
            _cell(case, 'tokens_per_s', ',.0f'),
            _cell(case, 'mfu', '.1%'),
            *(_cell(case, key, '.2f', 1e9) for key in sizes),
            _cell(case, 'step_s', '.3g'),
            _cell(case, 'compile_s', '.0f'),
        ]
        rows.append([case['method'], f'{case["rows"]} × {case["sequence_length"]}', *cells])
    failed = [
        f'{case["method"]}, {case["sequence_length"]} tokens: {case["error"]}'
        for case in cases
        if 'error' in case
    ]
    return '\n\n'.join([markdown.table(rows), *failed])


def _cell(case: Mapping[str, Any], key: str, form: str, unit: float = 1.0) -> str:
    value = case.get(key)
    return '–' if value is None else format(value / unit, form)

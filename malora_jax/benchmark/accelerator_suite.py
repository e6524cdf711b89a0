"""Benchmark suite for one accelerator: attention kernels, and the training step of an 8B model.

Each case runs in a process of its own, because a device reports the peak of its memory only for the
whole life of a process.
"""

import concurrent.futures
import copy
import dataclasses
import itertools
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from malora_jax import markdown
from malora_jax.adapters import method
from malora_jax.benchmark import attention_check, input_batches
from malora_jax.benchmark.machine import machine
from malora_jax.benchmark.run import random_base_params
from malora_jax.benchmark.timed_steps import compile_method_step, time_part
from malora_jax.distributed.gpus import GPUS, find_gpu
from malora_jax.distributed.topology import disable_device_detection
from malora_jax.models.attention_backends import KERNELS, kernel_of
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
        attention_length: Tokens per row in the check of the attention kernels.
        head_widths: Widths of the heads in this check.
    """

    model: str
    dtype: str
    lengths: tuple[int, ...]
    tokens: int
    attention_length: int
    head_widths: tuple[int, ...]


_ACCELERATOR = _Shapes('llama3.1-8b', 'bfloat16', (2048, 8192), 8192, 2048, (64, 128))
# GPUs with less memory get a smaller model. The step of the 8B model needs about 50 GB.
_LARGE_MEMORY, _SMALLER_MODEL = 60e9, 'llama3.2-1b'
# Without an accelerator, the suite only shows that it works.
_CPU = _Shapes('tiny', 'float32', (32, 128), 128, 128, (64,))


def accelerator_suite(
    config: Mapping[str, Any], rounds: int, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Check attention and measure the step of LoRA and MALoRA on the first device of this host.

    The base model has the shapes of Llama 3.1 8B (of Llama 3.2 1B if the device is known to have
    less than 60 GB), or on a CPU those of a tiny model. The dropout rate is 0, and each row is a
    single example of random tokens. A check or case that fails does not stop the others.

    Args:
        config: Nested config as written in configs/. Its model, method, dropout rate and shape of a
            batch are replaced.
        rounds: Number of timed steps per case.
        save: Function that stores the result; it is called after each check and each case.

    Returns:
        `machine`; `attention`, the results of `_check_attention`; `model` and `dtype`;
        `peak_flops_per_s`, the peak of the device, or None if `GPUS` does not have it; and
        `cases`. Each case has `method`, `sequence_length`, `rows`, `planned_bytes`, and the results
        of `_measure` with `mfu`, the model FLOPs utilization. `planned_bytes` is the memory that
        `experiments.plan --topology` computes without the device. Values that are not known for
        this device are None. A check or case that failed has `error`.

    Raises:
        UserError: The config is invalid.
    """
    found, kernels = _in_new_process(_describe_device)
    gpu = find_gpu(found['device'])
    shapes = _shapes(found['platform'], gpu)
    result: dict[str, Any] = {
        'machine': found,
        'attention': [],
        'model': shapes.model,
        'dtype': shapes.dtype,
        'peak_flops_per_s': GPUS[gpu].peak_tflops * 1e12 if gpu else None,
        'cases': [],
    }
    for backend, dtype in itertools.product(('xla', *kernels), ('float32', 'bfloat16')):
        print(f'Attention, {backend}, {dtype} …', flush=True)
        arguments = backend, dtype, shapes.attention_length, shapes.head_widths
        checks = _try_in_new_process(_check_attention, *arguments)
        failed = [{'backend': backend, 'dtype': dtype} | checks]
        result['attention'] += failed if 'error' in checks else checks['checks']
        save(result)
    for name, length in itertools.product(_METHODS, shapes.lengths):
        run = _case_run(config, shapes, name, length)
        print(f'{name}, {run.data.batch_size} × {length} tokens …', flush=True)
        result['cases'].append(_case(run, rounds, gpu, result['peak_flops_per_s']))
        save(result)
    return result


def _shapes(platform: str, gpu: str | None) -> _Shapes:
    """Return the shapes for a kind of device.

    Args:
        platform: JAX's name of the platform.
        gpu: Key of the card in `GPUS`, or None.
    """
    if platform == 'cpu':
        return _CPU
    if gpu and GPUS[gpu].memory_bytes < _LARGE_MEMORY:
        return dataclasses.replace(_ACCELERATOR, model=_SMALLER_MODEL)
    return _ACCELERATOR


def _case(run: RunConfig, rounds: int, gpu: str | None, peak: float | None) -> dict[str, Any]:
    """Plan and measure one case.

    Args:
        run: Config of the case.
        rounds: Number of timed steps.
        gpu: Key of the card in `GPUS`, or None.
        peak: Peak of the device in FLOP/s, or None.

    Returns:
        An item of `cases` in the result of `accelerator_suite`.
    """
    plan = _try_in_new_process(_plan, run, f'{gpu}:1') if gpu else {}
    case: dict[str, Any] = {
        'method': run.method,
        'sequence_length': run.data.sequence_length,
        'rows': run.data.batch_size,
        'planned_bytes': plan.get('bytes_per_device'),
    } | _try_in_new_process(_measure, run, rounds)
    if 'error' not in case:
        case['mfu'] = case['flops_per_s'] / peak if peak else None
    return case


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def _try_in_new_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the result of a function, or a dict with `error`.

    A device, a compiler or a kernel can fail in many ways, and may end the process.
    """
    try:
        return _in_new_process(function, *arguments)
    except Exception as error:
        return {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}


def _describe_device() -> tuple[dict[str, Any], list[str]]:
    """Return the description of this host, and the names of the kernels to check.

    On a CPU, all kernels are interpreted.
    """
    device = jax.devices()[0]
    is_cpu = device.platform == 'cpu'
    return machine(), [name for name in KERNELS if is_cpu or name == kernel_of(device)]


def _check_attention(
    backend: str, dtype: str, length: int, head_widths: tuple[int, ...]
) -> dict[str, Any]:
    """Compare an attention backend of the device with float64 on random packings.

    Args:
        backend: Name of the backend.
        dtype: Dtype of the inputs.
        length: Tokens per row.
        head_widths: Widths of the heads.

    Returns:
        `checks`, for each head width: `backend`, `dtype`, `head_width`, the errors of
        `attention_check.errors` by output, which are the largest of two packings, `tolerance`, the
        limit for an interpreted kernel, and `passed`.
    """
    # Otherwise GPUs and TPUs round the factors of float32 products.
    jax.config.update('jax_default_matmul_precision', 'highest')
    interpret = jax.devices()[0].platform == 'cpu'
    tolerance = attention_check.TOLERANCES[backend, dtype]
    checks = []
    for width in head_widths:
        rng = np.random.default_rng(0)
        found = [
            attention_check.errors(
                backend,
                attention_check.random_packing(
                    rng,
                    length=length,
                    max_segments=max_segments,
                    num_heads=8,
                    num_kv_heads=2,
                    head_width=width,
                    dtype=dtype,
                ),
                interpret,
            )
            for max_segments in (1, 64)
        ]
        largest = {name: max(each[name] for each in found) for name in attention_check.OUTPUTS}
        check = {'backend': backend, 'dtype': dtype, 'head_width': width, **largest}
        passed = max(largest.values()) < tolerance
        checks.append(check | {'tolerance': tolerance, 'passed': passed})
    return {'checks': checks}


def _case_run(config: Mapping[str, Any], shapes: _Shapes, name: str, length: int) -> RunConfig:
    changed = copy.deepcopy(dict(config))
    changed['model'] |= {'name': shapes.model, 'dtype': shapes.dtype, 'weights': ''}
    changed['data'] |= {'sequence_length': length, 'batch_size': shapes.tokens // length}
    changed['training'] |= {'accumulate': 1}
    run = run_config(changed)
    adapter = method(name, **_METHODS[name], targets=run.adapter.targets, dropout=0.0)
    return dataclasses.replace(run, method=name, adapter=adapter)


def _plan(run: RunConfig, topology: str) -> dict[str, Any]:
    disable_device_detection()
    return compile_for_topology(run, topology)


def _measure(run: RunConfig, rounds: int) -> dict[str, Any]:
    """Compile the step of a run and time it.

    Args:
        run: Config of the case.
        rounds: Number of timed steps.

    Returns:
        `attention`, the attention backend; `compile_s`; `step_s`, the median over the rounds;
        `tokens_per_s`; `flops_per_s`, the FLOPs of `plan.flops_per_token` per second;
        `compiled_bytes`, the memory of the step in the analysis of the compiler; and `peak_bytes`,
        the peak that the device reports, or None if it reports none or if the initialization of the
        base model had a higher one.
    """
    # The compilation cache is disabled, so that compile times are those of a first start.
    jax.config.update('jax_enable_compilation_cache', False)
    run = run.for_device(jax.devices()[0])
    batches = input_batches.synthetic_batches(run, _NUM_BATCHES)
    params = jax.block_until_ready(random_base_params(run))
    initial_peak = _peak_bytes()
    step = compile_method_step(
        run.method, run, params, batches[0], len(input_batches.SYNTHETIC_TASKS)
    )
    seconds = [
        time_part(step.run_part, 'step', batches[number % _NUM_BATCHES]) for number in range(rounds)
    ]
    tokens_per_s = batches[0]['inputs'].size / float(np.median(seconds))
    peak = _peak_bytes()
    return {
        'attention': run.attention,
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


def format_tables(result: Mapping[str, Any]) -> str:
    """Return Markdown tables of the errors of attention and of the cases, with sizes in GB.

    Args:
        result: Result of `accelerator_suite`.
    """
    head = ['attention', 'dtype', 'head width', *attention_check.OUTPUTS, 'tolerance', 'passed']
    checks, failed = [head], []
    for check in result['attention']:
        name = [check['backend'], check['dtype']]
        if 'error' in check:
            checks.append([*name, *('–' for _ in head[3:]), 'no'])
            failed.append(f'{", ".join(name)}: {check["error"]}')
            continue
        errors = [f'{check[name]:.1e}' for name in (*attention_check.OUTPUTS, 'tolerance')]
        passed = 'yes' if check['passed'] else 'no'
        checks.append([*name, str(check['head_width']), *errors, passed])
    cases = [
        [
            *('', 'rows', 'attention', 'tokens/s', 'MFU', 'planned GB', 'compiled GB', 'peak GB'),
            *('step, s', 'compile, s'),
        ]
    ]
    for case in result['cases']:
        cells = [
            case.get('attention', '–'),
            _cell(case, 'tokens_per_s', ',.0f'),
            _cell(case, 'mfu', '.1%'),
            *(_cell(case, f'{kind}_bytes', '.2f', 1e9) for kind in ('planned', 'compiled', 'peak')),
            _cell(case, 'step_s', '.3g'),
            _cell(case, 'compile_s', '.0f'),
        ]
        rows = f'{case["rows"]} × {case["sequence_length"]}'
        cases.append([case['method'], rows, *cells])
        if 'error' in case:
            failed.append(f'{case["method"]}, {rows}: {case["error"]}')
    return '\n\n'.join([markdown.table(checks), markdown.table(cases), *failed])


def _cell(case: Mapping[str, Any], key: str, form: str, unit: float = 1.0) -> str:
    value = case.get(key)
    return '–' if value is None else format(value / unit, form)

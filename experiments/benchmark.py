r"""Benchmark the training step of several methods, interleaved in one process.

Prints a table of throughput and memory. With --output=FILE, also writes the measurements to FILE as
JSON, and the table and a chart next to it. The method 'base' is the frozen model alone: its forward
pass, and the gradient with respect to its embedding.

Flags by group:
    what is measured  --config, --methods, --model, --rows, --tokens, --rounds
    other modes       --grow (measure at several ranks or numbers of experts), --topology (print
                      a compiler's estimates for a TPU or GPU, without it), --suite
    result            --output

Examples:
    python -m experiments.benchmark --config=configs/quickstart.py \
      --methods=base,lora,dora,molora,malora --output=runs/benchmark/synthetic.json
    python -m experiments.benchmark --config=configs/quickstart.py --grow=num_experts \
      --methods=malora,malora_dispatch --rounds=5 --output=runs/benchmark/experts.json
    python -m experiments.benchmark --config=configs/quickstart.py --model=llama2-7b \
      --config.model.dtype=bfloat16 --tokens=4096 --topology=v6e:2x2
    python -m experiments.benchmark --config=configs/quickstart.py --suite=accelerator \
      --output=runs/benchmark/accelerator.json
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import files
from malora_jax.benchmark import (
    accelerator_suite,
    adapter_sizes,
    compiler_estimates,
    plots,
    report,
)
from malora_jax.benchmark.run import benchmark, benchmark_sizes, estimate
from malora_jax.distributed.topology import disable_device_detection

_METHODS = flags.DEFINE_list(
    'methods',
    ['base', 'lora', 'molora', 'malora'],
    'Names of the adapter methods to compare; base = the frozen base model alone.',
)
_ROWS = flags.DEFINE_enum(
    'rows',
    'synthetic',
    ['synthetic', 'packed'],
    'Batches to measure on: synthetic = full rows of random tokens; packed = packed examples of '
    "the config's tasks.",
)
_MODEL = flags.DEFINE_string(
    'model', None, 'Name of the base model preset; replaces config.model.name.'
)
_TOKENS = flags.DEFINE_integer(
    'tokens',
    None,
    'Number of token positions per step. config.data.sequence_length is shortened to this number '
    'if it is longer. config.data.batch_size becomes this number divided by the sequence length '
    'and by config.training.accumulate.',
    lower_bound=1,
)
_ROUNDS = flags.DEFINE_integer(
    'rounds', 20, 'Minimum number of timed steps per method.', lower_bound=1
)
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    None,
    'TPU slice or GPU, such as v5e:2x2 or h100:1: instead of measuring, print the memory of one '
    "layer of the model, and the TPU compiler's estimates of its cycles and operations. Needs no "
    'device.',
)
_GROW = flags.DEFINE_enum(
    'grow',
    None,
    list(adapter_sizes.SIZES),
    'Adapter setting to vary: measure each method at several values of this setting, instead of '
    'only at the value in the config.',
)
_SUITE = flags.DEFINE_enum(
    'suite',
    None,
    ['accelerator'],
    'Measurements on a device that was not measured before, instead of a comparison of --methods. '
    'accelerator = errors of the attention kernels on the device, then throughput, model FLOPs '
    'utilization and peak memory of LoRA and MALoRA with the shapes of Llama 3.1 8B (with less '
    'than 60 GB: of Llama 3.2 1B; on a CPU: of a tiny model). Takes about ten minutes.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'JSON file to write the measurements into; a table and a chart are written next to it.',
)


def main(config: dict[str, Any]) -> None:
    """Run the benchmark, print its table, and write the output files."""
    if _MODEL.value is not None:
        config['model']['name'] = _MODEL.value
    if _TOKENS.value is not None:
        data, accumulate = config['data'], config['training']['accumulate']
        data['sequence_length'] = min(data['sequence_length'], _TOKENS.value)
        data['batch_size'] = max(1, _TOKENS.value // data['sequence_length'] // accumulate)
    if _SUITE.value is not None:
        _run_suite(config)
    elif _TOPOLOGY.value is not None:
        _estimate(config, _TOPOLOGY.value)
    elif _GROW.value is not None:
        _grow(config, _GROW.value)
    else:
        _compare(config)


def _estimate(config: dict[str, Any], topology: str) -> None:
    disable_device_detection()
    found = estimate(config, _METHODS.value, topology)
    table = compiler_estimates.format_table(found['methods'])
    _write(found, table)
    print(f'One layer of {found["model"]}, {found["dtype"]}, {found["positions"]:,} tokens, ')
    print(f'dropout {found["dropout"]}, for {found["topology"]}\n\n{table}')


def _run_suite(config: dict[str, Any]) -> None:
    def save(result: dict[str, Any]) -> None:
        _write(result, accelerator_suite.format_tables(result))

    found = accelerator_suite.accelerator_suite(config, _ROUNDS.value, save)
    table = accelerator_suite.format_tables(found)
    print(f'{found["model"]}, {found["dtype"]}, {found["machine"]["device"]}\n\n{table}')


def _grow(config: dict[str, Any], field: str) -> None:
    found = benchmark_sizes(config, _METHODS.value, _ROUNDS.value, _ROWS.value == 'packed', field)
    sizes = found['sizes']
    plot = functools.partial(plots.plot_sizes, curves=adapter_sizes.curves(sizes), field=field)
    _write_and_print(found, adapter_sizes.format_table(field, sizes), plot)


def _compare(config: dict[str, Any]) -> None:
    found = benchmark(config, _METHODS.value, _ROUNDS.value, _ROWS.value == 'packed')
    plot = functools.partial(plots.plot_step_times, methods=found['methods'])
    _write_and_print(found, report.format_table(found['methods']), plot)


def _write_and_print(result: dict[str, Any], table: str, plot: Callable[..., None]) -> None:
    """Write the measurements with a plot, and print their table."""
    machine = result['machine']
    title = f'{result["model"]}, {result["dtype"]}, {result["tokens_per_step"]:,.0f} tokens a step'
    output = _write(result, table)
    if output is not None:
        plot(output.with_suffix('.png'), title=title)
    print(f'{title}, {result["rows"]} rows, dropout {result["dropout"]}')
    print(f'{machine["device"]}, {machine["processor"]}, {machine["cores"]} cores\n\n{table}')


def _write(result: dict[str, Any], table: str) -> pathlib.Path | None:
    """Write the measurements and their table, if --output is given.

    Returns:
        The path of the JSON file; None without --output.
    """
    if _OUTPUT.value is None:
        return None
    output = pathlib.Path(_OUTPUT.value).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(output.with_suffix('.md'), table)
    files.write_json(output, result)
    return output


if __name__ == '__main__':
    cli.run(main)

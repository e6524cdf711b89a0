"""Tables and numbers of the documentation on TPU slices, GPUs, sweeps and the paper."""

import collections
import csv
import functools
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from docs.records import RESULTS, load
from malora_jax import markdown
from malora_jax.analysis import cells
from malora_jax.distributed.gpus import GPUS
from malora_jax.runs.paper import PAPER_TABLES
from malora_jax.statistics import seed_interval
from malora_jax.training import scaling

# Numbers of experts of the sweep, and ranks of MALoRA with the rank of a MoLoRA of the same size.
EXPERTS = (2, 4, 8)
SAME_SIZE = {2: (6, 11), 4: (12, 10), 8: (24, 15)}
RANKS = tuple(rank for rank, _ in SAME_SIZE.values())
# Rows of the sweep's table: label, and the rank for each number of experts.
SWEEP_ROWS = {
    **{f'MALoRA, r̄ = {rank}': ('malora', dict.fromkeys(EXPERTS, rank)) for rank in RANKS},
    'MoLoRA of the same size': ('molora', {N: rank for N, (_, rank) in SAME_SIZE.items()}),
}


def slices() -> str:
    """Return the table of models and TPU slices, as `experiments.scaling` prints it."""
    return markdown.table([scaling._HEAD, *(scaling._row(cell) for cell in slice_cells())])


def slice_cells() -> list[dict[str, Any]]:
    """Return the compiled training steps, one for each pair of a model and a TPU slice."""
    return json.loads((RESULTS / 'scaling.json').read_text('utf-8'))


def slice_values() -> dict[str, Any]:
    """Return numbers about the table of models and TPU slices.

    Returns:
        `gb_per_chip`: memory of LLaMA-2 7B's step on four v5e chips. `sharded_gb` and
        `unsharded_gb`: memory of LLaMA-2 7B's arguments on one chip that does or does not shrink
        with the number of chips (4 or 64). `cycles_spread`: largest relative difference of cycles
        between slices of one kind of chip, without v5p:4x4x4. `sum_cycles`: smallest and largest
        relative increase of the cycles from four v5p chips to v5p:4x4x4.
    """
    by_name = {(cell['model'], cell['topology']): cell for cell in slice_cells()}
    few, many = (by_name['llama2-7b', name] for name in ('v5e:2x2', 'v5e:8x8'))
    whole = (few['bytes']['arguments'] - many['bytes']['arguments']) / (
        1 / few['devices'] - 1 / many['devices']
    )
    groups = collections.defaultdict(list)
    for (model, topology), cell in by_name.items():
        if topology != 'v5p:4x4x4':
            groups[model, topology.split(':')[0]].append(cell['estimated_cycles'])
    ratios = [
        by_name[model, 'v5p:4x4x4']['estimated_cycles']
        / by_name[model, 'v5p:2x2x1']['estimated_cycles']
        for model in ('llama2-7b', 'llama3.1-8b')
    ]
    return {
        'gb_per_chip': few['bytes_per_device'] / 1e9,
        'sharded_gb': {cell['devices']: whole / cell['devices'] / 1e9 for cell in (few, many)},
        'unsharded_gb': (few['bytes']['arguments'] - whole / few['devices']) / 1e9,
        'cycles_spread': max(max(cycles) / min(cycles) - 1 for cycles in groups.values()),
        'sum_cycles': [min(ratios) - 1, max(ratios) - 1],
    }


def plan() -> str:
    """Return the part of a plan that --topology adds, as a code block."""
    found = load('tpu_plan')['values']['topology']
    lines = ',\n'.join(f'  {json.dumps(key)}: {json.dumps(value)}' for key, value in found.items())
    return f'```text\n"topology": {{\n{lines}\n}}\n```'


def step_values() -> dict[str, float]:
    """Return the memory of MALoRA's step on one chip in GB, and its ratios to LoRA's step."""
    malora, lora = (load('tpu_step')['values'][name] for name in ('malora', 'lora'))
    return {
        'memory_gb': malora['bytes_per_chip'] / 1e9,
        'memory_ratio': malora['bytes_per_chip'] / lora['bytes_per_chip'],
        'cycles_ratio': malora['cycles'] / lora['cycles'],
    }


def gpus() -> str:
    """Return the table of the GPUs for which steps can be compiled."""
    rows = [['`--topology`', 'card', 'memory, GiB', 'peak, TFLOP/s (bfloat16)', 'checked']]
    for name, gpu in GPUS.items():
        card = gpu.product.removeprefix('NVIDIA ')
        checked = 'yes' if gpu.checked else 'no'
        rows.append([f'`{name}:N`', card, f'{gpu.memory_gib:.1f}', f'{gpu.peak_tflops:,}', checked])
    return markdown.table(rows)


def attention_layers() -> str:
    """Return the table of one layer on a TPU chip: XLA's attention next to splash attention."""
    rows = [['chip', 'model', 'tokens in a row', 'method', 'million cycles (XLA)']]
    rows[0] += ['GB accessed', 'temporary GB']
    for chip, model, length, by_backend in attention_layer_pairs():
        xla, splash = (by_backend[each]['methods'] for each in ('xla', 'splash'))
        for name in splash:
            pairs = [
                [_billions(methods.get(name, {}).get(key)) for methods in (xla, splash)]
                for key in ('accessed_bytes', 'temporary_bytes')
            ]
            cycles = f'{xla[name]["cycles"] / 1e6:,.1f}' if name in xla else '–'
            rows.append([chip, model, f'{length:,}', name, cycles, *map(' → '.join, pairs)])
    return markdown.table(rows)


def attention_layer_pairs() -> list[tuple[str, str, int, dict[str, Any]]]:
    """Return the estimates for one layer on a TPU chip with both attention backends.

    Returns:
        Chip, model, tokens in a row, and for 'xla' and 'splash' `positions`, the number of tokens,
        and `methods`, the estimates by method; a program that did not compile is missing.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for layer in load('tpu_attention')['values']['layers']:
        key = layer['chip'], layer['model'], layer['sequence_length']
        found.setdefault(key, {})[layer['attention']] = layer
    return [(*key, by_backend) for key, by_backend in sorted(found.items())]


def attention_plans(record: str) -> str:
    """Return the table of whole training steps: XLA's attention next to the kernel.

    Args:
        record: Name of the record with the plans.
    """
    rows = [['topology', 'model', 'rows × tokens', 'attention', 'fits', 'GB per device']]
    rows[0] += ['temporary GB', 'all-gather GB', 'fits with', 'GB then']
    for plan in load(record)['values']['plans']:
        found = plan['topology']
        change = found.get('change') or {}
        then = change.get('bytes_per_device')
        temporary = found.get('bytes', {}).get('temporary')
        gathered = found.get('collective_bytes', {}).get('all-gather')
        rows.append(
            [
                *(f'`{found["name"]}`', plan['model']),
                f'{plan["rows"]} × {plan["sequence_length"]:,}',
                *(plan['attention'], 'yes' if found['fits'] else 'no'),
                *(_gb(found['bytes_per_device']), _gb(temporary), _gb(gathered)),
                ', '.join(f'`{name}={value}`' for name, value in change.items() if '.' in name)
                or ('' if found['fits'] else 'nothing'),
                _gb(then),
            ]
        )
    return markdown.table(rows)


def gpu_plan_values() -> dict[str, list[float]]:
    """Return `seconds`: the least and the most processor seconds of a plan for GPUs."""
    seconds = [plan['processor_s'] for plan in load('gpu_plan')['values']['plans']]
    return {'seconds': [min(seconds), max(seconds)]}


def _billions(value: float | None) -> str:
    return '–' if value is None else f'{value / 1e9:.1f}'


def _gb(size: float | None) -> str:
    return '' if size is None else f'{size / 1e9:.2f}'


@functools.cache
def sweep_runs() -> dict[tuple[str, int, int], dict[int, dict[str, float]]]:
    """Return the runs of the sweep over ranks and numbers of experts.

    Returns:
        Answer loss (nats per token), score (0 to 1), trainable parameters and tokens by seed, for
        each method, number of experts and rank.
    """
    found: dict[tuple[str, int, int], dict[int, dict[str, float]]] = {}
    with (RESULTS / 'rank_experts.csv').open(encoding='utf-8') as file:
        for row in csv.DictReader(file):
            method = row['row'].split('-')[0]
            key = method, int(row['adapter.num_experts']), int(row['adapter.rank'])
            found.setdefault(key, {})[int(row['seed'])] = {
                name: float(row[name]) for name in ('loss', 'score', 'trainable', 'tokens')
            }
    return found


def by_seed(method: str, experts: int, rank: int, metric: str = 'loss') -> list[float]:
    """Return a metric of the runs that differ only in their seed, by ascending seed."""
    runs = sweep_runs()[method, experts, rank]
    return [runs[seed][metric] for seed in sorted(runs)]


def sweep_losses() -> str:
    """Return the table of answer losses by rank and number of experts, with their intervals."""
    rows = [['answer loss, nats per token', *(f'{N} experts' for N in EXPERTS)]]
    for label, (method, ranks) in SWEEP_ROWS.items():
        losses = [by_seed(method, N, ranks[N]) for N in EXPERTS]
        rows.append(
            [label, *(cells.loss(statistics.mean(each), seed_interval(each)) for each in losses)]
        )
    return markdown.table(rows)


def sweep_differences() -> dict[str, dict[str, list[float]]]:
    """Return differences of the answer loss between runs of the same seed, in nats per token.

    Returns:
        The difference for each seed, by comparison, then by what both runs have in common.
    """

    def minus(first: tuple[str, int, int], second: tuple[str, int, int]) -> list[float]:
        return [a - b for a, b in zip(by_seed(*first), by_seed(*second), strict=True)]

    return {
        f'r̄ = {RANKS[-1]} instead of {RANKS[0]}': {
            f'{N} experts': minus(('malora', N, RANKS[-1]), ('malora', N, RANKS[0]))
            for N in EXPERTS
        },
        f'{EXPERTS[-1]} experts instead of {EXPERTS[0]}': {
            f'r̄ = {rank}': minus(('malora', EXPERTS[-1], rank), ('malora', EXPERTS[0], rank))
            for rank in RANKS
        },
        'MALoRA instead of MoLoRA of the same size': {
            f'{N} experts': minus(('malora', N, ours), ('molora', N, theirs))
            for N, (ours, theirs) in SAME_SIZE.items()
        },
    }


def sweep_differences_table() -> str:
    """Return the table of the differences between runs of the same seed."""
    seeds = load('rank_experts')['seeds']
    rows = [['difference of the answer loss', 'with', *(f'seed {seed}' for seed in seeds)]]
    for comparison, differences in sweep_differences().items():
        for common, values in differences.items():
            rows.append([comparison, common, *(f'{value:+.3f}' for value in values)])
    return markdown.table(rows)


def sweep_values() -> dict[str, Any]:
    """Return numbers about the sweep over ranks and numbers of experts.

    Returns:
        `rank`, `experts` and `molora`: smallest and largest difference between runs of the same
        seed. `loss` and `score`: smallest and largest mean over seeds. `tokens`: smallest and
        largest number of tokens of a run. `size_difference`: largest relative difference in
        trainable parameters between MALoRA and the MoLoRA of the same size.
    """
    rank, experts, molora = (
        [*itertools.chain(*by_common.values())] for by_common in sweep_differences().values()
    )
    means = {
        metric: [statistics.mean(by_seed(*key, metric)) for key in sweep_runs()]
        for metric in ('loss', 'score')
    }
    tokens = [value for key in sweep_runs() for value in by_seed(*key, 'tokens')]
    sizes = [
        by_seed('molora', N, theirs, 'trainable')[0] / by_seed('malora', N, ours, 'trainable')[0]
        for N, (ours, theirs) in SAME_SIZE.items()
    ]
    ranges = {'rank': rank, 'experts': experts, 'molora': molora, **means, 'tokens': tokens}
    return {name: [min(values), max(values)] for name, values in ranges.items()} | {
        'size_difference': max(abs(ratio - 1) for ratio in sizes)
    }


def paper_averages() -> str:
    """Return the table of the paper's averages over tasks in its Tables 1 and 2, in %."""
    inter_domain, intra_domain = (PAPER_TABLES[name].rows for name in ('table1', 'table2'))
    rows = [['method', 'Table 1', 'Table 2']]
    for name, row in inter_domain.items():
        other = f'{intra_domain[name].average:.2f}' if name in intra_domain else ''
        rows.append([row.label, f'{row.average:.1f}', other])
    return markdown.table(rows)


PARTS: dict[str, Callable[[], str]] = {
    'tpu slices': slices,
    'tpu plan': plan,
    'gpus': gpus,
    'gpu plans': functools.partial(attention_plans, 'gpu_plan'),
    'attention layers': attention_layers,
    'attention plans': functools.partial(attention_plans, 'tpu_attention'),
    'sweep losses': sweep_losses,
    'sweep differences': sweep_differences_table,
    'paper averages': paper_averages,
}
VALUES: dict[str, Callable[[], Mapping[str, Any]]] = {
    'slices': slice_values,
    'step': step_values,
    'gpu plans': gpu_plan_values,
    'sweep': sweep_values,
}

"""Tables and numbers of the documentation about training: speed, scores and comparisons."""

import functools
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from docs.records import RESULTS, load
from docs.repository import ROOT
from experiments.peers import throughput_table
from malora_jax import markdown
from malora_jax.adapters import METHODS
from malora_jax.analysis import cells
from malora_jax.analysis.page import Section, Table, section_to_markdown
from malora_jax.analysis.sections.scores import scores_section
from malora_jax.analysis.sections.seesaw import seesaw_section
from malora_jax.benchmark import adapter_sizes, compiler_estimates, report
from malora_jax.runs import SeedGroup, read_runs, seed_groups
from malora_jax.runs.paper import PAPER_TABLES
from malora_jax.statistics import average_interval
from malora_jax.training.results import format_table


def method_counts(name: str) -> str:
    """Return the counts of a method, from its row in the table that `tests/test_docs.py` checks."""
    page = (ROOT / 'docs' / 'methods' / 'parameters.md').read_text('utf-8')
    (row,) = re.findall(rf'^\| `{name}` \|(.*)\|$', page, re.MULTILINE)
    _, _, trained, frozen, percent, gflop, _ = [cell.strip() for cell in row.split('|')]
    rows = [
        ('on LLaMA-2 7B', ''),
        ('trained parameters', trained),
        ('share of the base model', f'{percent}%'),
        ('frozen parameters in the adapter', frozen),
        ('adapter GFLOP per token, forward and backward', gflop),
    ]
    return markdown.table(rows)


def step_times() -> str:
    """Return the table of step times of all methods."""
    return report.format_table(load('packed')['values']['methods'])


def step_times_by_method() -> str:
    """Return the table of every method's parameters, times and memory, relative to LoRA's."""
    measured = load('methods_cpu')['values']['methods']
    estimated = load('methods_tpu')['values']['methods']
    head = ('method', 'trained parameters', 'step, CPU', 'memory, CPU', 'cycles, TPU')
    rows = [head]
    for name in sorted(METHODS, key=lambda name: measured[name]['ratio_to_lora']):
        found, lora = measured[name], measured['lora']
        rows.append(
            (
                f'[`{name}`](methods/{name}.md)',
                f'{found["trained_parameters"] / lora["trained_parameters"]:.2f}',
                f'{found["ratio_to_lora"]:.2f}' + ('' if found['steady'] else ' *'),
                f'{found["temporary_bytes"] / lora["temporary_bytes"]:.2f}',
                f'{estimated[name]["cycles"] / estimated["lora"]["cycles"]:.2f}',
            )
        )
    return markdown.table(rows)


def step_times_by_experts() -> str:
    """Return the table of step time and memory against the number of experts."""
    return adapter_sizes.format_table('experts', sizes())


def sizes() -> dict[int, Any]:
    """Return the measurements by number of experts."""
    measured = load('growth_experts')['values']['sizes']
    return {int(size): methods for size, methods in measured.items()}


def tpu_layer() -> str:
    """Return the table of the TPU compiler's estimates for one layer."""
    return compiler_estimates.format_table(load('tpu_layer')['values']['methods'])


def gpu_layer() -> str:
    """Return the table of a layer that the GPU compiler compiled: kernels and memory."""
    return compiler_estimates.format_table(load('gpu_layer')['values']['methods'])


def tpu_quantized() -> str:
    """Return the table of the TPU compiler's estimates for a layer with a quantized base."""
    values = load('tpu_quantized')['values']
    rows = [['`model.quantize`', 'cycles', '× bfloat16', 'temporary, MB']]
    for kind, found in values.items():
        rows.append(
            [
                kind,
                f'{found["cycles"]:,.0f}',
                f'{found["cycles"] / values["bfloat16"]["cycles"]:.3f}',
                f'{found["temporary_bytes"] / 1e6:,.0f}',
            ]
        )
    return markdown.table(rows)


def rematerialization() -> str:
    """Return the table of temporary memory by `training.remat`."""
    recomputed = {
        'none': 'nothing',
        'light': 'between the linears: norms, activation functions, rotary embeddings',
        'full': 'all of a layer',
    }
    measured = load('remat')['values']
    rows = [['`training.remat`', 'recomputed in the backward pass', 'temporary memory, MB']]
    for kind, text in recomputed.items():
        name = f'`{kind}`' + ' (default)' * (kind == 'light')
        rows.append([name, text, f'{measured[kind] / 1e6:,.0f}'])
    return markdown.table(rows)


PEER_PAIRS = {
    'lora': ('LoRA, rank 64', 'HF PEFT, LoRA'),
    'molora': ('MoLoRA, 2 of 8 experts', 'MoE-PEFT, MoLA'),
}


def peers() -> str:
    """Return the table of our throughput compared with that of other systems."""
    head = ['method', 'batches', 'ours, tokens/s', 'peer', 'peer, tokens/s', 'ratio', 'quartiles']
    rows = [head]
    for pair, kind, ours, peer, found in peer_ratios():
        (method, peer_name), by_step = PEER_PAIRS[pair], found['by_step']
        quartiles = f'{by_step["lower"]:.2f}–{by_step["upper"]:.2f}'
        cells = (method, kind, f'{ours:.0f}', peer_name, f'{peer:.0f}', f'{found["ratio"]:.2f}')
        rows.append([*cells, quartiles])
    return markdown.table(rows)


def peer_ratios() -> list[tuple[str, str, float, float, Mapping[str, Any]]]:
    """Return pair, kind of batches, our and the peer's tokens per second, and their ratio."""
    from experiments.peers.systems import PAIRS

    found = []
    for pair in PEER_PAIRS:
        for kind in ('synthetic', 'real'):
            measured = load('peers')['values']['rows'][kind]
            systems = measured['systems']
            rates = [
                systems[name]['tokens_per_second']['median']
                for name in (PAIRS[pair].ours, PAIRS[pair].peer)
            ]
            found.append((pair, kind, *rates, measured['pairs'][pair]))
    return found


def decoding() -> str:
    """Return the table of decoding speed compared with llama.cpp."""
    rows = [['', 'tokens/s', 'quartiles', 'ours / peer']]
    for name, found in load('decoding')['values'].items():
        low, high = found['quartiles']
        rows.append(
            [name, f'{found["tokens_per_s"]:.1f}', f'{low:.1f}–{high:.1f}', f'{found["ratio"]:.2f}']
        )
    return markdown.table(rows)


def serving_throughput() -> str:
    """Return the table of tokens per second of our server and of vLLM's, by number of clients."""
    return throughput_table.format_table(load('serving_throughput')['values'])


def quickstart_scores() -> str:
    """Return the table that the quickstart prints, as a code block."""
    return f'```text\n{format_table(load("quickstart")["values"])}\n```'


def short_runs() -> str:
    """Return the table of a short run of every method, with that of the control first."""
    groups = {name: group for name, group in short_run_groups().items() if '-' not in name}
    lora = groups['lora']
    rows = {
        name: (
            group.average_loss(),
            f'{group.parameters["trainable"]:,}',
            cells.loss(group.average_loss(), average_interval(group.losses)),
            '' if group is lora else cells.loss_difference(group.average_difference(lora, 'loss')),
            cells.score(group.average_score()),
        )
        for name, group in groups.items()
    }
    for name, found in load('methods_short')['values'].items():
        loss, score = found['loss_after'], found['after']
        row = f'{found["trained"]:,}', cells.loss(loss), '', cells.score((score, None))
        rows.setdefault(name, (loss, *row))
    control = ('control', *rows.pop('control')[1:])
    head = ('method', 'trained parameters', 'loss', 'more than LoRA', 'right, %')
    return markdown.table(
        [head, control]
        + [
            (f'[`{name}`](methods/{name}.md)', *row)
            for name, (_, *row) in sorted(rows.items(), key=lambda item: item[1])
        ]
    )


def published_forms() -> str:
    """Return the table of short runs with forms of published code, next to those of the papers."""
    groups = short_run_groups()
    rows = [('setting', 'loss, paper', 'loss, code', 'difference', 'right, %, code')]
    for name, group in groups.items():
        method, _, setting = name.partition('-')
        if setting:
            paper = groups[method]
            rows.append(
                (
                    f'`{method}`, `adapter.{setting}`',
                    cells.loss(paper.average_loss()),
                    cells.loss(group.average_loss()),
                    cells.loss_difference(group.average_difference(paper, 'loss')),
                    cells.score(group.average_score()),
                )
            )
    return markdown.table(rows)


@functools.cache
def short_run_groups() -> dict[str, SeedGroup]:
    """Return the archived short runs by name.

    The name is that of the method, with the setting after a hyphen if it has a form of published
    code. The control is LoRA that stays zero.
    """
    home = pathlib.Path(_archive('methods_short').name)
    return {
        path.name: SeedGroup(path.name, run.tasks, [run])
        for path in sorted(home.iterdir())
        for run in read_runs([path])
    }


@functools.cache
def _archive(name: str) -> tempfile.TemporaryDirectory:
    """Unpack archived runs; the directory is removed when Python ends.

    Args:
        name: Name of the archive in `docs/results` without its suffix.
    """
    home = tempfile.TemporaryDirectory()
    with tarfile.open(RESULTS / f'{name}.tar.xz') as archive:
        archive.extractall(home.name, filter='data')
    return home


@functools.cache
def comparison_groups() -> list[SeedGroup]:
    """Return the rows of the comparison, each with its archived runs."""
    runs = read_runs([pathlib.Path(_archive('table2_small').name)])
    return seed_groups(runs, PAPER_TABLES['table2'])


@functools.cache
def comparison() -> dict[str, Section]:
    """Return the sections of a report on the archived runs that the page shows, by name."""
    groups = comparison_groups()
    sections = (
        scores_section(groups, PAPER_TABLES['table2']),
        seesaw_section(groups, pathlib.Path(_archive('table2_small').name)),
    )
    return {section.name: section for section in sections}


def comparison_table(section: str, index: int) -> str:
    """Return a table of the report on the comparison.

    Args:
        section: Name of the section.
        index: Number of the table in the section.
    """
    tables = [block for block in comparison()[section].blocks if isinstance(block, Table)]
    return section_to_markdown(Section('', '', [tables[index]])).partition('\n\n')[2]


PARTS: dict[str, Callable[[], str]] = {
    **{f'method {name}': functools.partial(method_counts, name) for name in METHODS},
    'step times': step_times,
    'step times by method': step_times_by_method,
    'step times by experts': step_times_by_experts,
    'tpu layer': tpu_layer,
    'gpu layer': gpu_layer,
    'tpu quantized': tpu_quantized,
    'rematerialization': rematerialization,
    'peers': peers,
    'decoding': decoding,
    'serving throughput': serving_throughput,
    'quickstart scores': quickstart_scores,
    'short runs': short_runs,
    'published forms': published_forms,
    'comparison scores': functools.partial(comparison_table, 'scores', 0),
    'comparison averages': functools.partial(comparison_table, 'scores', 1),
    'comparison losses': functools.partial(comparison_table, 'scores', 2),
    'comparison seesaw': functools.partial(comparison_table, 'seesaw', 0),
}


def comparison_values() -> dict[str, Any]:
    """Return the numbers of the report on the comparison, in the form in which pages quote them.

    Returns:
        A dict with these entries:
            rows: Numbers of the section `scores`, by row.
            ahead: Lead of the row LoRA over each other row, and of MoLoRA over MALoRA: `points` of
                accuracy and `nats` of answer loss, each with the ends `low` and `high` of its
                interval.
            seesaw: Numbers of significant `gains` and `losses`, and of all differences, `compared`.
    """
    rows, seesaw = (comparison()[name].numbers for name in ('scores', 'seesaw'))
    changes = [change for by_task in seesaw.values() for change in by_task.values()]
    pairs = [('lora', name) for name in rows if 'lora' in rows[name]['score_minus']]
    pairs.append(('molora', 'malora'))
    return {
        'rows': rows,
        'ahead': {
            f'{leader} {name}': {
                'points': _negated(rows[name]['score_minus'][leader], 100),
                'nats': _negated(rows[name]['loss_minus'][leader], -1),
            }
            for leader, name in pairs
        },
        'seesaw': {
            'gains': sum(change['interval'][0] > 0 for change in changes),
            'losses': sum(change['interval'][1] < 0 for change in changes),
            'compared': len(changes),
        },
    }


def _negated(difference: Mapping[str, Any], unit: float) -> dict[str, float]:
    """Return minus a difference, in another unit, with the ends of its interval in order."""
    low, high = sorted(-unit * end for end in difference['interval'])
    return {'mean': -unit * difference['mean'], 'low': low, 'high': high}


def memory_ratios() -> dict[str, float]:
    """Return the memory of each method's step, relative to LoRA's."""
    methods = load('packed')['values']['methods']
    total = {name: adapter_sizes.total_bytes(found) for name, found in methods.items()}
    return {name: size / total['lora'] for name, size in total.items()}


def claims() -> dict[str, float]:
    """Return the numbers of the front page's claims, under short names."""
    steps = load('packed')['values']['methods']
    pairs = load('peers')['values']['rows']['real']['pairs']
    lead = comparison_values()['ahead']['lora malora']['points']
    low, high = steps['malora']['step_quartiles_s']
    return {
        'time': steps['malora']['ratio_to_lora'],
        'lora_s': steps['lora']['step_s'],
        **{'malora_s': steps['malora']['step_s'], 'low_s': low, 'high_s': high},
        'memory': memory_ratios()['malora'],
        **{name: pairs[pair]['ratio'] for name, pair in (('peft', 'lora'), ('mola', 'molora'))},
        **{f'peft_{end}': pairs['lora']['by_step'][end] for end in ('lower', 'upper')},
        **{f'mola_{end}': pairs['molora']['by_step'][end] for end in ('lower', 'upper')},
        **{f'lead_{key}': value for key, value in lead.items()},
    }


VALUES: dict[str, Callable[[], Mapping[str, Any]]] = {
    'comparison': comparison_values,
    'claim': claims,
}

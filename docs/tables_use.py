"""Tables of the documentation about the use of trained models, from stored results and plans."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import intra_domain, ultralink_lm
from docs.records import load
from docs.tables_training import comparison_groups, comparison_values
from malora_jax import markdown
from malora_jax.analysis import cells
from malora_jax.statistics import Interval, average_interval, paired_bootstrap
from malora_jax.training import run_config
from malora_jax.training.memory_estimate import (
    format_estimates,
    memory_estimates,
    parse_memory_size,
)


def static_export() -> str:
    """Return the table of held-out losses of a mixture and of its static approximations."""
    models = {
        'base': 'base',
        'mixture': '`malora`',
        'static': 'static',
        'static_of_chain_sum': 'static, `--task=chain_sum`',
    }
    rows = [['held-out loss (nats per token)', *models.values()]]
    for task, losses in load('static_export')['values']['losses'].items():
        rows.append([task, *(f'{losses[model]:.4f}' for model in models)])
    return markdown.table(rows)


def starts_from_lora() -> str:
    """Return the table of losses and similarities of mixtures that start from a LoRA."""
    measured = load('start_from_lora')['values']
    rows = {
        'loss before the first step': 'losses_before',
        'similarity before the first step': 'similarity_before',
        'similarity after 5 steps': 'similarity_after_5_steps',
    }
    models = measured['losses_before']
    table = [['', *(name if name == 'base' else f'`{name}`' for name in models)]]
    for label, key in rows.items():
        found = measured[key]
        table.append([label, *(f'{found[name]:.4f}' if name in found else '' for name in models)])
    return markdown.table(table)


def combined_loras() -> str:
    """Return the table of ways to combine LoRAs of single tasks, next to joint training."""
    runs = load('combine_loras')['values']['runs']
    oracle = runs['oracle']
    head = ['', 'trained parameters', 'steps', 'loss', 'more than the oracle', 'right, %']
    rows = [head]
    for name, run in runs.items():
        losses, scores = run['losses'], run['scores']
        difference = paired_bootstrap(losses, oracle['losses'])
        rows.append(
            [
                run['description'],
                f'{run["trained"]:,}',
                f'{run["steps"]}',
                cells.loss(_mean(losses), average_interval(losses)),
                '' if name == 'oracle' else cells.loss_difference(difference),
                cells.score((_mean(scores), average_interval(scores))),
            ]
        )
    return markdown.table(rows)


def benchmark_scores() -> str:
    """Return the base model's scores on benchmarks in two forms, next to the harness's."""
    columns = [
        ('accuracy', 'lm_eval', 'accuracy'),
        ('in the harness', 'harness', 'accuracy'),
        ('normalized', 'lm_eval', 'accuracy_normalized'),
        ('in the harness', 'harness', 'accuracy_normalized'),
        ('extracted', 'llm_adapters', 'accuracy'),
    ]
    rows = [['', 'questions', *(title for title, _, _ in columns)]]
    for name, measured in load('benchmark_scores')['values'].items():
        row = [f'`{name}`', f'{measured["questions"]:,}']
        for _, form, metric in columns:
            found = measured.get(form, {}).get(metric)
            interval = found and found['interval'] and Interval(*found['interval'])
            row.append(cells.score((found['score'], interval)) if found else '')
        rows.append(row)
    return markdown.table(rows)


def commonsense_run() -> str:
    """Return the scores of a short run on the training sets of commonsense_170k."""
    rows = [['', 'questions', 'before', 'best constant answer', 'after']]
    for name, found in load('commonsense_small')['values']['tasks'].items():
        after = (found['after'], Interval(*found['after_interval']))
        others = (cells.score((found[key], None)) for key in ('before', 'best_constant'))
        rows.append([f'`{name}`', f'{found["examples"]}', *others, cells.score(after)])
    return markdown.table(rows)


def combined_loras_by_task() -> str:
    """Return the table of the loss on each task of combined LoRAs, next to joint training."""
    runs = load('combine_loras')['values']['runs'].values()
    rows = [['loss', *(run['description'] for run in runs)]]
    for task in next(iter(runs))['losses']:
        rows.append([task, *(cells.loss(_mean({task: run['losses'][task]})) for run in runs)])
    return markdown.table(rows)


def _mean(values: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over tasks of each task's mean."""
    return statistics.mean(statistics.mean(of_task) for of_task in values.values())


def quantized_quickstart() -> str:
    """Return the table of a short quickstart with quantized base models."""
    measured = load('quantized_quickstart')['values']
    head = ['base model', 'size, MB', 'loss before', 'loss after']
    rows = [[*head, f'exact match after, % of {measured["questions"]}']]
    for name, found in measured['formats'].items():
        cells = [f'`{name}`', f'{found["base_mb"]:,}', f'{found["loss_before"]:.3f}']
        if found['loss_after'] is None:
            cells += ['', '']
        else:
            cells += [f'{found["loss_after"]:.3f}', f'{100 * found["exact_match"]:.1f}']
        rows.append(cells)
    return markdown.table(rows)


def kills_by_activity() -> str:
    """Return the table of where the time of a run went that was killed again and again."""
    measured = load('kills')['values']
    rows = [['activity', 'seconds', 'share']]
    for name, seconds in measured['seconds'].items():
        rows.append([name, f'{seconds:.1f}', f'{seconds / measured["total_s"]:.0%}'])
    return markdown.table(rows)


def quickstart_cost() -> str:
    """Return a sentence on the time and memory of the quickstart."""
    run = load('quickstart')['values']
    return (
        f'Training took {run["train_time_s"] / 60:.0f} minutes '
        f'({run["tokens"] / run["train_time_s"]:.0f} tokens per second). The whole run took '
        f'{run["wall_time_s"] / 60:.0f} minutes and {run["peak_memory_bytes"] / 1e9:.1f} GB of '
        'memory.'
    )


def recipe_costs() -> str:
    """Return the table of time, memory and score of the configs whose runs are stored."""
    quickstart, rows = load('quickstart')['values'], comparison_values()['rows']
    groups = {group.name: group for group in comparison_groups()}
    table = [['config', 'training, min', 'whole run, min', 'memory, GB', 'before, %', 'after, %']]
    after = (quickstart['average']['after'], quickstart['average_interval']['after'])
    cells = _costs([quickstart], quickstart['average']['before'], *after)
    table.append(['`quickstart.py:malora`', *cells])
    for method in ('lora', 'malora'):
        runs = [run.results for run in groups[method].runs]
        cells = _costs(runs, rows['base']['average'][0], *rows[method]['average'])
        table.append([f'`intra_domain_small.py:{method}`', *cells])
    return markdown.table(table)


def _costs(
    runs: Sequence[dict[str, Any]], before: float, after: float, interval: Sequence[float]
) -> list[str]:
    """Return the cells of a row: training time, whole time, memory, score before and after."""
    measured = [
        [run['train_time_s'] / 60 for run in runs],
        [run['wall_time_s'] / 60 for run in runs],
        [run['peak_memory_bytes'] / 1e9 for run in runs],
    ]
    ranges = [
        ' to '.join(dict.fromkeys(f'{end:.{digits}f}' for end in (min(values), max(values))))
        for values, digits in zip(measured, (0, 0, 1), strict=True)
    ]
    low, high = (100 * end for end in interval)
    return [*ranges, f'{100 * before:.1f}', f'{100 * after:.1f} [{low:.1f}, {high:.1f}]']


def memory_plan(config: ConfigDict, memory: str) -> list[str]:
    """Return the lines that `experiments.plan --memory` prints.

    Args:
        config: Config of the run.
        memory: Memory of the device, such as '24GB'.
    """
    run, size = run_config(config.to_dict()), parse_memory_size(memory)
    return format_estimates(run, memory_estimates(run, size), size).splitlines()


def malora_plan(model: str) -> list[str]:
    """Return the plan of a model with MALoRA on 24 GB."""
    config = intra_domain.get_config('malora')
    config.model.name = model
    return memory_plan(config, '24GB')


def plan_table(model: str) -> str:
    """Return the table of the plan of a model with MALoRA on 24 GB."""
    return '\n'.join(line for line in malora_plan(model) if line.startswith('|'))


def llama3_advice() -> str:
    """Return what the plan recommends for Llama 3.1 8B with MALoRA on 24 GB."""
    return f'```text\n{malora_plan("llama3.1-8b")[-1]}\n```'


def ultralink_advice() -> str:
    """Return what the plan says about half a step of UltraLink-LM with MALoRA on 80 GB."""
    config = ultralink_lm.get_config('malora')
    config.data.files = ('en=en.jsonl',)  # A config needs a file; the plan does not read it.
    config.data.batch_size, config.training.accumulate = 8, 2
    return f'```text\n{memory_plan(config, "80GB")[-1]}\n```'


PARTS: dict[str, Callable[[], str]] = {
    'static export': static_export,
    'starts from lora': starts_from_lora,
    'combined loras': combined_loras,
    'benchmark scores': benchmark_scores,
    'commonsense run': commonsense_run,
    'combined loras by task': combined_loras_by_task,
    'quantized quickstart': quantized_quickstart,
    'kills by activity': kills_by_activity,
    'quickstart cost': quickstart_cost,
    'recipe costs': recipe_costs,
    **{
        f'plan {model}': functools.partial(plan_table, model)
        for model in ('llama2-7b', 'llama3.1-8b')
    },
    'plan advice llama3.1-8b': llama3_advice,
    'plan advice ultralink_lm': ultralink_advice,
}

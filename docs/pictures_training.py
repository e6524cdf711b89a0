"""Pictures of the documentation about training: speed, scores and comparisons."""

import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from docs import tables_training
from docs.records import load
from malora_jax.analysis import task_plots, training_plots
from malora_jax.analysis.figures import COLORS, mark_truncated, save, without_mathtext
from malora_jax.analysis.sections.seesaw import task_changes
from malora_jax.benchmark import adapter_sizes, plots
from malora_jax.runs.compare import single_task_rows


def step_times(path: pathlib.Path) -> None:
    """Draw the step times of all methods."""
    found = load('packed')['values']
    title = f'{found["model"]}, {found["tokens_per_step"]:.0f} tokens per step'
    plots.plot_step_times(path, found['methods'], f'{title}, packed rows, {found["dtype"]}')


def step_times_by_experts(path: pathlib.Path) -> None:
    """Draw step time and memory against the number of experts."""
    found = load('growth_experts')['values']
    title = (
        f'{found["model"]}, {found["tokens_per_step"]:.0f} tokens per step, {found["rows"]} rows'
    )
    curves = adapter_sizes.curves(tables_training.sizes())
    plots.plot_sizes(path, curves, 'number of experts', title)


@without_mathtext
def peers(path: pathlib.Path) -> None:
    """Draw our throughput as a multiple of that of other systems, for the same methods."""
    found = tables_training.peer_ratios()
    names = [f'{tables_training.PEER_PAIRS[pair][1]}\n{kind} batches' for pair, kind, *_ in found]
    ratios = np.array([ratio['ratio'] for *_, ratio in found])
    ends = np.array([[r['by_step']['lower'], r['by_step']['upper']] for *_, r in found]).T
    figure = Figure(figsize=(8, 3.2), layout='constrained')
    record = load('peers')
    axes = figure.add_subplot(
        xlabel='our tokens per second / theirs (ratio of medians; quartiles of single steps)',
        title=f'{record["values"]["model"]}, float32, {record["machine"]}',
    )
    places = np.arange(len(found))
    # The quartiles are those of single steps, so they need not contain the ratio of the medians.
    errors = np.maximum([ratios - ends[0], ends[1] - ratios], 0)
    axes.barh(places, ratios, 0.6, xerr=errors, capsize=4, color=COLORS[0])
    axes.axvline(1, color='black', linewidth=1)
    for place, ratio, end in zip(places, ratios, ends[1], strict=True):
        axes.annotate(f' {ratio:.2f} ×', (max(ratio, end), place), va='center')
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)
    save(figure, path)


@without_mathtext
def score_by_parameters(path: pathlib.Path) -> None:
    """Draw accuracy and answer loss of each method against its number of trained parameters."""
    groups = [
        g for g in tables_training.comparison_groups() if not g.is_base and not g.is_single_task
    ]
    figure = Figure(figsize=(9, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for color, group in zip(COLORS, groups, strict=False):
        place = group.parameters['trainable'] / 1e6
        accuracy, interval = group.average_score()
        seeds = [100 * score for score in group.by_seed('score').values()]
        left.plot([place, place], 100 * np.array(interval), color=color, linewidth=1)
        left.plot([place] * len(seeds), seeds, 'x', color=color)
        left.plot(place, 100 * accuracy, 'o', color=color)
        losses = [*group.by_seed('loss').values()]
        right.plot([place] * len(losses), losses, 'x', color=color)
        right.plot(place, group.average_loss(), 'o', color=color, label=group.label)
    left.set_ylabel('accuracy, mean over tasks (%), 95% interval')
    right.set_ylabel('answer loss, mean over tasks (nats per token)')
    for axes in (left, right):
        axes.set_xlabel('trained parameters (millions)')
        axes.grid(alpha=0.3)
        mark_truncated(axes)
    right.legend(frameon=False, fontsize=8)
    questions = sum(scores.shape[1] for scores in groups[0].scores.values())
    seeds = ', '.join(map(str, groups[0].by_seed('score')))
    title = f'SmolLM2-135M, 120 steps, {questions:,} questions in {len(groups[0].tasks)} tasks'
    figure.suptitle(f'{title}; crosses: seeds {seeds}; circles: their mean', fontsize=10)
    save(figure, path)


def task_losses(path: pathlib.Path) -> None:
    """Draw the training losses of LoRA and MALoRA, trained on all tasks and on each alone."""
    labels = {
        'lora': 'LoRA, all tasks',
        'lora_single': 'LoRA, each task alone',
        'malora': 'MALoRA, all tasks',
        'malora_single': 'MALoRA, each task alone',
    }
    groups = {group.name: group for group in tables_training.comparison_groups()}
    curves = {text: [run.records for run in groups[name].runs] for name, text in labels.items()}
    task_plots.plot_task_losses(path, curves, 'SmolLM2-135M; seeds 0 and 1, alone seed 0')


def seesaw(path: pathlib.Path) -> None:
    """Draw what each task gains or loses by being trained with the others."""
    groups = tables_training.comparison_groups()
    changes = {}
    for group in groups:
        single_rows = single_task_rows(groups, group)
        if single_rows:
            changes[group.label] = task_changes(group, single_rows)
    conditions = 'SmolLM2-135M, 200 questions per task; lines: 95% intervals'
    task_plots.plot_seesaw(path, changes, conditions)


def quickstart_losses(path: pathlib.Path) -> None:
    """Draw the training loss of each task of the quickstart."""
    results, losses = load('quickstart')['values'], load('quickstart_losses')['values']
    steps = range(1, results['steps'] + 1)
    metrics = [
        {'step': step, **{f'loss/{task}': curve[step - 1] for task, curve in losses.items()}}
        for step in steps
    ]
    metrics = [
        {key: loss for key, loss in record.items() if loss is not None} for record in metrics
    ]
    title = f'{results["method"]} on {results["model"]}, seed {results["seed"]}: loss by task'
    training_plots.plot_losses(path, metrics, title)


@without_mathtext
def short_runs(path: pathlib.Path) -> None:
    """Draw the validation loss of each method's short run, with LoRA's for comparison."""
    groups = tables_training.short_run_groups()
    curves = {
        name: np.array(
            [(r['step'], r['validation_loss']) for r in run.records if 'validation_loss' in r]
        ).T
        for name, group in groups.items()
        for run in group.runs
        if '-' not in name
    }
    control, lora = curves.pop('control'), curves.pop('lora')
    figure = Figure(figsize=(9, 8), layout='constrained')
    panels = figure.subplots(-(-len(curves) // 4), 4, sharex=True, sharey=True)
    for panel in panels.flat[len(curves) :]:
        panel.set_visible(False)
    for panel, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        panel.plot(*control, ':', color='black', linewidth=1, label='control')
        panel.plot(*lora, color='gray', linewidth=1, label='LoRA')
        panel.plot(*curve, '-o', color=COLORS[0], markersize=3, label='method')
        panel.set_title(name, fontsize=9)
        panel.grid(alpha=0.3)
        panel.set_yscale('log')
        panel.set_yticks((0.5, 1, 2, 4), ('0.5', '1', '2', '4'))
        panel.minorticks_off()
        panel.tick_params(labelbottom=True)
    figure.supxlabel('step')
    figure.supylabel('validation loss (nats per answer token)')
    panels[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


PICTURES: dict[str, Callable[[pathlib.Path], None]] = {
    'quickstart_loss.svg': quickstart_losses,
    'step_times.svg': step_times,
    'step_times_by_experts.svg': step_times_by_experts,
    'peers.svg': peers,
    'score_by_parameters.svg': score_by_parameters,
    'comparison_curves.svg': task_losses,
    'comparison_changes.svg': seesaw,
    'short_runs.svg': short_runs,
}

"""Section on the runs of a report: counts of steps, tokens and examples, and loss over training."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.analysis import task_plots
from malora_jax.analysis.conditions import model_and_seeds
from malora_jax.analysis.figures import metric_curve
from malora_jax.analysis.page import NO_VALUE, Picture, ReportBlock, Section, Table
from malora_jax.runs import LoadedRun

_LABELS = {
    'method': 'method',
    'tasks': 'tasks',
    'seed': 'seed',
    'steps': 'steps',
    'analysed_step': 'checkpoint analyzed',
    'tokens': 'tokens',
    'examples': 'examples drawn',
    'epochs': 'epochs',
    'trained': 'trained parameters',
    'loss_before': 'held-out loss before',
    'loss_after': 'held-out loss after',
    'before': 'score before, %',
    'after': 'score after, %',
    'seconds_per_step': 'seconds per step',
}
# Number of decimals, where it is not one.
_DIGITS = {'loss_before': 3, 'loss_after': 3, 'seconds_per_step': 2}
# With more runs than this, each run is a row instead of a column.
_MAX_COLUMNS = 4


def overview_section(runs: Sequence[LoadedRun], output: pathlib.Path) -> Section:
    """Return the section that lists the runs with their steps, losses and scores.

    The table has a column for each of up to four runs. With more runs, it has a row for each run,
    and the run with the lowest held-out loss comes first.

    Args:
        runs: Runs of the report.
        output: Directory of the plot.
    """
    numbers = {run.name: _overview(run) for run in runs}
    by_loss = sorted(numbers, key=lambda name: _loss(numbers[name]))
    runs_are_columns = len(runs) <= _MAX_COLUMNS
    names = [*numbers] if runs_are_columns else by_loss
    rows = [
        [label, *(_cell(key, numbers[name][key]) for name in names)]
        for key, label in _LABELS.items()
    ]
    cells = [['', *names], *rows]
    head, *rows = cells if runs_are_columns else map(list, zip(*cells, strict=True))
    blocks: list[ReportBlock] = [Table(f'On {runs[0].base_identity[0]}', head, rows)]
    if len(runs) > 1:
        blocks.append(_plot_curves(runs, output))
    return Section('runs', 'Runs', blocks, numbers)


def _overview(run: LoadedRun) -> dict[str, Any]:
    last, results = run.records[-1], run.results if run.is_finished else None
    drawn = [value for key, value in last.items() if key.startswith('examples/')]
    return {
        'method': run.method,
        'tasks': len(run.tasks),
        'seed': run.seed,
        'steps': last['step'],
        'analysed_step': run.report_step or None,
        'tokens': last.get('total_tokens'),
        'examples': sum(drawn) if drawn else None,
        'epochs': last.get('epoch'),
        'trained': run.parameters['trainable'],
        'loss_before': run.task_mean('loss_before') if results else None,
        'loss_after': run.task_mean('loss_after') if results else None,
        'before': 100 * results['average']['before'] if results else None,
        'after': 100 * results['average']['after'] if results else None,
        'seconds_per_step': results['train_time_s'] / results['steps'] if results else None,
    }


def _plot_curves(runs: Sequence[LoadedRun], output: pathlib.Path) -> Picture:
    # Validation losses are preferred, because they are measured on the same examples at each step.
    validated = all(len(metric_curve(run.records, 'validation_loss')[0]) for run in runs)
    metric = 'validation_loss' if validated else 'loss'
    label = f'{metric.replace("_", " ")} (nats per token)'
    path = output / 'curves.png'
    curves = {run.name: metric_curve(run.records, metric) for run in runs}
    task_plots.plot_curves(path, curves, label, model_and_seeds(runs))
    last = {run.name: curves[run.name][1][-1] for run in runs}
    lowest, highest = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    caption = (
        f'{"Validation" if validated else "Training"} loss of each run in color, with the other '
        'runs in gray behind it. A curve that falls earlier learns faster. The last loss is lowest '
        f'in {lowest} ({last[lowest]:.3f}) and highest in {highest} ({last[highest]:.3f}).'
    )
    return Picture(path, caption)


def _loss(numbers: Mapping[str, Any]) -> float:
    return float('inf') if numbers['loss_after'] is None else numbers['loss_after']


def _cell(key: str, value: Any) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, float):
        return f'{value:.{_DIGITS.get(key, 1)}f}'
    return f'{value:,}' if isinstance(value, int) else str(value)

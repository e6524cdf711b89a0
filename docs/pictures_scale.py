"""Pictures of the documentation about sweeps, and about attention in long rows."""

import pathlib
import statistics
from collections.abc import Callable

from matplotlib.figure import Figure

from docs import tables_scale
from docs.records import load
from malora_jax.analysis import figures
from malora_jax.statistics import seed_interval

# Metrics of the panels: factor and label of the vertical axis.
_PANELS = {'loss': (1, 'answer loss (nats per token)'), 'score': (100, 'score (%)')}
# Horizontal distance between the lines of a panel, so that their intervals do not overlap.
_SHIFT = 0.14


@figures.without_mathtext
def sweep_rank_experts(path: pathlib.Path) -> None:
    """Draw loss and score of all runs of the sweep, with the mean and interval over seeds."""
    record = load('rank_experts')
    figure = Figure(figsize=(10, 4.2), layout='constrained')
    rows = tables_scale.SWEEP_ROWS
    for axes, (metric, (factor, label)) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for number, (name, (method, ranks)) in enumerate(rows.items()):
            shift, color = _SHIFT * (number - (len(rows) - 1) / 2), figures.COLORS[number]
            for position, experts in enumerate(tables_scale.EXPERTS):
                values = tables_scale.by_seed(method, experts, ranks[experts], metric)
                values = [factor * value for value in values]
                x = position + shift
                axes.plot([x, x], seed_interval(values), color=color, linewidth=1)
                axes.plot([x] * len(values), values, 'x', color=color, markersize=6)
                named = {'label': name} if position == 0 else {}
                axes.plot(x, statistics.mean(values), 'o', color=color, markersize=4, **named)
        axes.set_xticks(range(len(tables_scale.EXPERTS)), map(str, tables_scale.EXPERTS))
        axes.set(xlabel='number of experts', ylabel=label)
        axes.grid(axis='y', alpha=0.3)
    losses, scores = figure.axes
    figures.mark_truncated(losses)
    scores.set_ylim(bottom=0)
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc='outside lower center', ncols=len(rows))
    seeds = ' and '.join(map(str, record['seeds']))
    figures.state_conditions(
        figure,
        f'SmolLM2-135M, 32 steps; {record["values"]["questions"]} questions per seed; '
        f'crosses: seeds {seeds}; circles: their mean; lines: 95% interval over seeds',
    )
    figures.save(figure, path)


@figures.without_mathtext
def attention_lengths(path: pathlib.Path) -> None:
    """Draw memory traffic and memory of a layer with MALoRA against the length of a row."""
    figure = Figure(figsize=(10, 4), layout='constrained')
    panels = {
        'accessed_bytes': ('bytes accessed per token (MB)', 1e6),
        'temporary_bytes': ('temporary memory per token (MB)', 1e6),
    }
    for axes, (key, (label, unit)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, chip in enumerate(('v5e', 'v6e')):
            for backend, style in (('xla', 'o--'), ('splash', 'o-')):
                points = [
                    (length, layer['methods']['malora'][key] / layer['positions'] / unit)
                    for each, _, length, by_backend in tables_scale.attention_layer_pairs()
                    if each == chip and 'malora' in (layer := by_backend[backend])['methods']
                ]
                lengths, values = zip(*points, strict=True)
                name = f'{chip}, {backend}'
                axes.plot(lengths, values, style, color=figures.COLORS[number], label=name)
        axes.set_xscale('log', base=2)
        lengths = sorted({length for _, _, length, _ in tables_scale.attention_layer_pairs()})
        axes.set_xticks(lengths, [f'{length:,}' for length in lengths])
        axes.set(xlabel='tokens in a row', ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[1].legend(frameon=False, loc='lower right')
    figures.state_conditions(
        figure, load('tpu_attention')['machine'] + '; one layer, forward and backward'
    )
    figures.save(figure, path)


PICTURES: dict[str, Callable[[pathlib.Path], None]] = {
    'sweep_rank_experts.svg': sweep_rank_experts,
    'attention_lengths.svg': attention_lengths,
}

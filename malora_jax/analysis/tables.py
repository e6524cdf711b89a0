"""A table of the paper from finished runs: what they reached, beside what the paper did."""

import pathlib
from collections.abc import Mapping

from malora_jax import files, markdown
from malora_jax.analysis import plots
from malora_jax.analysis.compare import read_runs
from malora_jax.analysis.entries import Entry, make_entries, other_settings
from malora_jax.analysis.paper import TABLES, Row, Table
from malora_jax.statistics import Difference, Interval

# Names of rows: what others are held against, and whose curves are plotted.
_BASELINES = ('lora', 'molora')
_CURVES = ('lora', 'malora')
_NONE = '–'


def make_table(name: str, directory: pathlib.Path, output: pathlib.Path) -> str:
    """Writes `table.md` and its plots.

    `curves.png` has the losses of LoRA and MALoRA by task, if both have runs; `changes.png` what
    each task gains or loses by being trained with the others, if there are runs of single tasks.

    Args:
        name: of the table, in `TABLES`.
        directory: each run is a directory in it. Runs that the table has no row for get one of
            their own.
        output: where the files go.

    Returns:
        The table, in Markdown.

    Raises:
        UserError: as `read_runs` and `make_entries`.
    """
    table = TABLES[name]
    entries = make_entries(table, read_runs(directory), directory)
    alone = {name: other for name in entries if (other := _alone(entries, name))}
    changes = {name: entries[name].changes_from(other) for name, other in alone.items()}
    text = _format(table, entries, alone, changes)
    output.mkdir(parents=True, exist_ok=True)
    files.write_text(output / 'table.md', text)
    if {*_CURVES} <= entries.keys():
        records = {
            entries[name].label: [run.records for run in entries[name].runs] for name in _CURVES
        }
        plots.plot_task_curves(output / 'curves.png', records, table.title)
    if changes:
        bars = {entries[name].label.strip('`'): by_task for name, by_task in changes.items()}
        plots.plot_changes(output / 'changes.png', bars, table.title)
    return text


def _alone(entries: Mapping[str, Entry], name: str) -> Entry | None:
    """The row of single tasks that a row is held against: its own method's, else LoRA's."""
    entry = entries[name]
    if entry.single_task or not entry.runs:
        return None
    singles = [other for other in entries.values() if other.single_task]
    near = [
        other for method in (entry.method, 'lora') for other in singles if other.method == method
    ]
    return near[0] if near else None


def _format(
    table: Table,
    entries: Mapping[str, Entry],
    alone: Mapping[str, Entry],
    changes: Mapping[str, Mapping[str, Difference]],
) -> str:
    model = next(entry.runs[0].results['model'] for entry in entries.values() if entry.runs)
    parts = [
        f'# {table.title}: {model}',
        'Scores in %, each with its 95% interval. In italics what the paper has, for LLaMA-2 7B. '
        'Rows that are named by a `directory` are not in the paper.',
        _scores(table, entries),
        '## What the averages differ in',
        _comparison(entries),
        '## What the answer losses differ in',
        _losses(entries),
    ]
    if changes:
        parts += [
            '## What each task gains or loses by being trained with the others',
            _changes(table, entries, alone, changes),
        ]
    return '\n\n'.join([*parts, '## How to read this', *_notes(table, entries)])


def _scores(table: Table, entries: Mapping[str, Entry]) -> str:
    rows = [['', *table.tasks, 'average']]
    for entry in entries.values():
        found = [*map(entry.score, table.tasks), entry.average()]
        rows.append([entry.label, *(_score(*cell) if cell else _NONE for cell in found)])
        if entry.paper:
            rows.append(_in_italics(['in the paper', *_paper_scores(table, entry.paper)]))
    return markdown.table(rows)


def _paper_scores(table: Table, row: Row) -> list[str]:
    printed = f' (printed: {row.printed:g})' if row.printed else ''
    scores = [f'{row.scores[task]:g}' if row.scores else _NONE for task in table.tasks]
    return [*scores, f'{row.average:g}{printed}']


def _comparison(entries: Mapping[str, Entry]) -> str:
    """Size, what seeds change, and the differences to the baselines that there are."""
    baselines = _baselines(entries)
    rows = [['', 'trained parameters', 'average by seed']]
    for baseline in baselines:
        rows[0] += [f'average − {baseline.label}', '*in the paper*']
    for entry in entries.values():
        seeds = (f'{seed}: {100 * mean:.1f}' for seed, mean in entry.average_by_seed().items())
        row = [entry.label, _parameters(entry), ', '.join(seeds) or _NONE]
        for baseline in baselines:
            row += _against(entry, baseline) if entry is not baseline else [_NONE, _NONE]
        rows.append(row)
    return markdown.table(rows)


def _losses(entries: Mapping[str, Entry]) -> str:
    """Answer losses, held against the baselines."""
    baselines = _baselines(entries)
    rows = [['', 'answer loss (nats per token)', *(f'loss − {other.label}' for other in baselines)]]
    for entry in entries.values():
        row = [entry.label, _loss(entry.average_loss())]
        for baseline in baselines:
            found = entry.loss_change_from(baseline) if entry is not baseline else None
            row.append(_loss_difference(found) if found else _NONE)
        rows.append(row)
    return markdown.table(rows)


def _baselines(entries: Mapping[str, Entry]) -> list[Entry]:
    return [entries[name] for name in _BASELINES if name in entries]


def _against(entry: Entry, baseline: Entry) -> list[str]:
    """The difference of two averages, ours and the paper's."""
    ours = entry.change_from(baseline)
    theirs = _NONE
    if entry.paper and baseline.paper:
        theirs = f'*{entry.paper.average - baseline.paper.average:+.2f}*'
    return [_difference(ours) if ours else _NONE, theirs]


def _parameters(entry: Entry) -> str:
    if not entry.runs:
        return _NONE
    found = entry.runs[0].results['parameters']
    return f'{found["trainable"]:,} ({found["percent_of_base"]:.1f}%)'


def _changes(
    table: Table,
    entries: Mapping[str, Entry],
    alone: Mapping[str, Entry],
    changes: Mapping[str, Mapping[str, Difference]],
) -> str:
    rows = [['', 'against', *table.tasks, 'gain : lose']]
    for name, by_task in changes.items():
        cells = [_difference(by_task[t]) if t in by_task else _NONE for t in table.tasks]
        clear = [change.mean > 0 for change in by_task.values() if change.distinguishable]
        count = f'{sum(clear)} : {len(clear) - sum(clear)}'
        rows.append([entries[name].label, alone[name].label, *cells, count])
        ours, other = entries[name].paper, alone[name].paper
        if ours and other and ours.scores and other.scores:
            theirs = [f'{ours.scores[task] - other.scores[task]:+.1f}' for task in table.tasks]
            rows.append(_in_italics(['in the paper', other.label, *theirs, _NONE]))
    return markdown.table(rows)


def _notes(table: Table, entries: Mapping[str, Entry]) -> list[str]:
    """What the numbers are of, and what is missing."""
    notes = [
        'A difference of scores is in points, with its 95% interval by a paired bootstrap over the '
        'held-out questions, every task weighing the same; it is not distinguishable where the '
        'interval holds 0. Scores of several seeds are averaged by question first, so that '
        'intervals are about other questions; what other seeds would change shows in the averages '
        'by seed. Of many differences, one in twenty leaves out 0 by chance.',
        'The answer loss is that of the right answers to the held-out questions and of the token '
        'that ends each: all nats of a task by all its tokens, then the mean over tasks. Intervals '
        'of its differences are made like those of scores. A lower loss is better: a difference '
        'below 0 is a gain.',
    ]
    missing = [row.label for name, row in table.rows.items() if name not in entries]
    if missing:
        notes.append(f'Without a finished run: {", ".join(missing)}.')
    for field, values in other_settings(entries).items():
        described = '; '.join(f'{value} for {", ".join(names)}' for value, names in values.items())
        notes.append(f'The rows differ in `{field}`: {described}.')
    results = {
        task: result
        for entry in entries.values()
        for run in entry.runs
        for task, result in run.results['tasks'].items()
    }
    how = [
        f'- {task}: {results[task]["metric"]} of {results[task]["examples"]:,} questions; '
        + ', '.join(f'{key} {value}' for key, value in results[task].get('scoring', {}).items())
        for task in table.tasks
        if task in results
    ]
    return [*notes, '\n'.join(how)]


def _score(mean: float, interval: Interval) -> str:
    return f'{100 * mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]'


def _difference(found: Difference) -> str:
    """Of scores, in points."""
    low, high = found.interval
    text = f'{100 * found.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]'
    return text + _verdict(found)


def _loss(mean: float | None) -> str:
    return _NONE if mean is None else f'{mean:.3f}'


def _loss_difference(found: Difference) -> str:
    low, high = found.interval
    return f'{found.mean:+.3f} [{low:+.3f}, {high:+.3f}]' + _verdict(found)


def _verdict(found: Difference) -> str:
    return '' if found.distinguishable else ', not distinguishable'


def _in_italics(cells: list[str]) -> list[str]:
    return [cell if cell == _NONE else f'*{cell}*' for cell in cells]

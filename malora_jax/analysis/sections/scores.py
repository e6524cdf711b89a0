"""Section on the scores and answer losses of each row, and their differences from baselines.

A row is the base model, or a group of runs that differ only in their seed. The baselines are the
rows of LoRA and MoLoRA, if the report has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.analysis import cells
from malora_jax.analysis.page import NO_VALUE, BulletList, Italic, ReportBlock, Section, Table, Text
from malora_jax.runs import SeedGroup, paper
from malora_jax.runs.compare import differing_fields

# Names of the rows that all other rows are compared with, if they exist.
_BASELINE_NAMES = ('lora', 'molora')
_READING_GUIDE = (
    'A difference of scores is in percentage points, with its 95% interval by a paired bootstrap '
    'over the held-out questions; all tasks have the same weight. It is not significant if the '
    'interval contains 0. Scores of several seeds are averaged by question first. The intervals '
    'therefore describe the uncertainty over questions; the averages by seed show the variation '
    'between seeds. If there is no difference, one interval in twenty excludes 0 by chance.',
    'The answer loss is the loss of the right answers to the held-out questions and of the token '
    'that ends each answer: the nats of a task divided by its tokens, then the mean over tasks. '
    'The intervals of its differences are computed like those of scores. A lower loss is better, '
    'so a difference below 0 is a gain.',
)

_Numbers = Mapping[str, Mapping[str, Any]]


def scores_section(groups: Sequence[SeedGroup], table: paper.PaperTable | None = None) -> Section:
    """Return the section on scores and losses by row.

    Args:
        groups: Rows of the report, the base model first.
        table: Table of the paper whose numbers are shown next to those of the rows; None for no
            table.
    """
    baselines = baseline_rows(groups)
    numbers = {group.name: _row(group, baselines) for group in groups}
    model = groups[-1].runs[0].base_identity[0]
    blocks = [
        _scores(groups, numbers, table),
        _averages(groups, numbers, baselines, bool(table)),
        _losses(groups, numbers, baselines),
        *_notes(groups, table),
    ]
    title = f'{table.title}: {model}' if table else 'Scores and losses'
    return Section('scores', title, blocks, cells.to_json_value(numbers))


def baseline_rows(groups: Sequence[SeedGroup]) -> list[SeedGroup]:
    """Return the rows that all other rows are compared with.

    These are the rows `lora` and `molora`. If there is neither, the first trained row takes their
    place. If only one row is trained, the base model's row takes their place.

    Args:
        groups: Rows of the report, the base model first.
    """
    rows = [group for name in _BASELINE_NAMES for group in groups if group.name == name]
    return rows or [groups[1] if len(groups) > 2 else groups[0]]


def _row(group: SeedGroup, baselines: Sequence[SeedGroup]) -> dict[str, Any]:
    others = [baseline for baseline in baselines if baseline is not group]
    return {
        'label': group.label,
        'tasks': {task: group.score(task) for task in group.tasks},
        'average': group.average_score(),
        'average_by_seed': group.by_seed('score'),
        'average_loss': group.average_loss(),
        'score_minus': {other.name: group.average_difference(other) for other in others},
        'loss_minus': {other.name: group.average_difference(other, 'loss') for other in others},
    }


def _scores(
    groups: Sequence[SeedGroup], numbers: _Numbers, table: paper.PaperTable | None
) -> Table:
    rows = []
    for group in groups:
        own = numbers[group.name]
        scores = {**own['tasks'], 'average': own['average']}
        rows.append({'': group.label} | {name: cells.score(each) for name, each in scores.items()})
        if group.paper:
            rows.append({'': Italic(group.paper.source)} | _paper_scores(group.paper))
    caption = 'Scores in %, each with its 95% interval'
    if table:
        caption += f'. The numbers of the paper, for {table.base}, are in italics'
    if table and table.shows_all:
        rows += [
            {'': Italic(f'{row.label}, {row.source}')} | _paper_scores(row)
            for name, row in table.rows.items()
            if name not in numbers
        ]
    return Table.of(caption, rows)


def _paper_scores(row: paper.PaperRow) -> dict[str, str]:
    printed = f' (printed: {row.printed_average:g})' if row.printed_average else ''
    scores = {task: Italic(f'{score:g}') for task, score in row.scores.items()}
    return {**scores, 'average': Italic(f'{row.average:g}{printed}')}


def _averages(
    groups: Sequence[SeedGroup],
    numbers: _Numbers,
    baselines: Sequence[SeedGroup],
    with_paper: bool,
) -> Table:
    rows = []
    for group in groups:
        own = numbers[group.name]
        seeds = ', '.join(f'{s}: {100 * mean:.1f}' for s, mean in own['average_by_seed'].items())
        row = {'': group.label, 'trained parameters': _parameters(group)}
        row['average by seed'] = seeds or NO_VALUE
        for baseline in baselines:
            change = own['score_minus'].get(baseline.name)
            row[f'average − {baseline.label}'] = cells.score_difference(change)
            if with_paper:
                column = Italic(f'− {baseline.label} in the paper')
                row[column] = _paper_difference(group, baseline)
        rows.append(row)
    return Table.of('Averages over tasks', rows)


def _losses(
    groups: Sequence[SeedGroup], numbers: _Numbers, baselines: Sequence[SeedGroup]
) -> Table:
    rows = []
    for group in groups:
        own = numbers[group.name]
        row = {'': group.label, 'answer loss (nats per token)': cells.loss(own['average_loss'])}
        for baseline in baselines:
            change = own['loss_minus'].get(baseline.name)
            row[f'loss − {baseline.label}'] = cells.loss_difference(change)
        rows.append(row)
    return Table.of('Answer losses, means over tasks', rows)


def _parameters(group: SeedGroup) -> str:
    if group.is_base:
        return NO_VALUE
    counts = group.parameters
    percent = counts.get('percent_of_base')
    return f'{counts["trainable"]:,}' + (f' ({percent:.1f}%)' if percent is not None else '')


def _paper_difference(group: SeedGroup, baseline: SeedGroup) -> str:
    if group is baseline or not (group.paper and baseline.paper):
        return NO_VALUE
    return Italic(f'{group.paper.average - baseline.paper.average:+.2f}')


def _notes(groups: Sequence[SeedGroup], table: paper.PaperTable | None) -> list[ReportBlock]:
    notes: list[ReportBlock] = [Text(text) for text in _READING_GUIDE]
    names = {group.name for group in groups}
    missing = [row.label for name, row in table.rows.items() if name not in names] if table else []
    if missing:
        notes.append(Text(f'Without a finished run: {", ".join(missing)}.'))
    for field, values in differing_fields(groups).items():
        described = '; '.join(f'{value} for {", ".join(rows)}' for value, rows in values.items())
        notes.append(Text(f'The rows differ in {field}: {described}.'))
    results = {
        task: result
        for group in groups
        for run in group.runs
        for task, result in run.results['tasks'].items()
    }
    scored = [task for task in groups[0].tasks if task in results]
    notes.append(BulletList([_scoring(task, results[task]) for task in scored]))
    return notes


def _scoring(task: str, result: Mapping[str, Any]) -> str:
    settings = ', '.join(
        f'{key} {value}'
        for key, value in result.get('scoring', {}).items()
        if value not in ('', [])
    )
    return f'{task}: {result["metric"]} of {result["examples"]:,} questions; {settings}'

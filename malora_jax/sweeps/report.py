"""What a sweep found: a CSV with a row for each run, and a Markdown table over the seeds."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import files, markdown
from malora_jax.analysis.paper import TABLES
from malora_jax.errors import UserError
from malora_jax.statistics import Interval
from malora_jax.sweeps import plots
from malora_jax.sweeps.config import Report, Sweep
from malora_jax.sweeps.expand import SweepRun
from malora_jax.sweeps.found import Group, groups
from malora_jax.sweeps.status import loss_of
from malora_jax.training.run_files import read_results

_NONE = '–'


def write_report(
    workdir: pathlib.Path,
    sweep: Sweep,
    runs: Mapping[str, SweepRun],
    errors: Mapping[str, str],
) -> str:
    """Writes `runs.csv`, `report.md` and a plot for each field that is to be plotted against.

    Args:
        workdir: of the sweep.
        sweep: what is wanted.
        runs: by name.
        errors: by run that failed, why.

    Returns:
        The Markdown.

    Raises:
        UserError: no run is finished yet.
    """
    results = {
        name: read_results(workdir / name)
        for name in runs
        if (workdir / name / 'results.json').exists()
    }
    if not results:
        reasons = [f'; {name}: {error}' for name, error in errors.items()]
        raise UserError(f'No run of the sweep in {workdir} is finished{"".join(reasons[:1])}.')
    _write_csv(workdir / 'runs.csv', runs, results, errors)
    found = groups(runs, results)
    text = _format(workdir.name, sweep.report, runs, found, errors)
    files.write_text(workdir / 'report.md', text)
    for field in sweep.report.plots or plots.fields(runs.values()):
        plots.plot(workdir / f'{field.rsplit(".", 1)[-1]}.png', field, sweep, found)
    return text


def _write_csv(
    path: pathlib.Path,
    runs: Mapping[str, SweepRun],
    results: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, str],
) -> None:
    rows = [_csv_row(run, results.get(name), errors.get(name, '')) for name, run in runs.items()]
    head = list(dict.fromkeys(column for row in rows for column in row))
    with files.replacing(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(rows)


def _csv_row(run: SweepRun, results: Mapping[str, Any] | None, error: str) -> dict[str, Any]:
    named = {'run': run.name, 'row': run.row, 'seed': run.seed, **run.values}
    if results is None:
        return named | {'state': 'failed' if error else 'unfinished', 'error': error}
    tasks = results['tasks']
    adapter = {field: run.config['adapter'][field] for field in ('rank', 'shared_rank')}
    return {
        **named,
        'state': 'finished',
        'error': '',
        **{f'config.adapter.{field}': value for field, value in adapter.items()},
        'score': results['average']['after'],
        'loss': loss_of(results),
        **{f'score/{name}': task['after'] for name, task in tasks.items()},
        **{f'loss/{name}': task['loss_after'] for name, task in tasks.items()},
        'score_before': results['average']['before'],
        'trainable': results['parameters']['trainable'],
        'steps': results['steps'],
        'tokens': results['tokens'],
        'train_time_s': results['train_time_s'],
    }


def _format(
    title: str,
    report: Report,
    runs: Mapping[str, SweepRun],
    found: Sequence[Group],
    errors: Mapping[str, str],
) -> str:
    done = {name for group in found for name in group.names}
    failed = [f'- {name}: {error}' for name, error in errors.items()]
    waiting = [name for name in runs if name not in done and name not in errors]
    best = min(found, key=lambda group: group.mean('loss'))
    parts = [
        f'# {title}: {found[0].results[0]["model"]}',
        f'{len(done)} of {len(runs)} runs are finished.',
        _averages(report, found),
        f'The lowest loss is that of `{best.row}`.',
        '## By task',
        _by_task(found),
        '## How to read this',
        'Scores in %, losses in nats per token of the right answers, each the mean over tasks and '
        "then over seeds. In brackets the 95% interval for other seeds, by Student's t; a single "
        'seed has none. With two seeds it is wide: that is what two seeds say.',
        *_paper_note(report, found),
    ]
    if failed:
        parts += ['## Failed', '\n'.join(failed)]
    if waiting:
        parts += ['## Not finished', ', '.join(waiting) + '.']
    return '\n\n'.join(parts)


def _averages(report: Report, found: Sequence[Group]) -> str:
    fields = list(dict.fromkeys(name for group in found for name in group.values))
    papers = [group.paper(report) for group in found]
    rows = [['', *fields, 'trained parameters', 'seeds', 'score', 'loss']]
    rows[0] += ['*in the paper*'] if any(papers) else []
    for group, paper in zip(found, papers, strict=True):
        row = [f'`{group.row}`', *(f'{group.values.get(name, _NONE)}' for name in fields)]
        row += [f'{group.parameters:,}', ', '.join(map(str, group.seeds))]
        row += [_score(group.mean('score'), group.interval('score'))]
        row += [_loss(group.mean('loss'), group.interval('loss'))]
        if any(papers):
            row.append(f'*{paper.average:g}*' if paper else _NONE)
        rows.append(row)
    return markdown.table(rows)


def _by_task(found: Sequence[Group]) -> str:
    tasks = list(dict.fromkeys(task for group in found for task in group.tasks))
    rows = [['', *tasks]]
    for group in found:
        cells = [
            _score(group.mean('score', task), group.interval('score', task))
            if task in group.tasks
            else _NONE
            for task in tasks
        ]
        rows.append([f'`{group.row}`', *cells])
    return markdown.table(rows)


def _paper_note(report: Report, found: Sequence[Group]) -> list[str]:
    if not report.table:
        return []
    title = TABLES[report.table].title
    if any(group.paper(report) for group in found):
        return [f'In italics what the paper has in its {title}, for LLaMA-2 7B.']
    return [
        f"The tasks are not those of the paper's {title}: its numbers are no measure for these."
    ]


def _score(mean: float, interval: Interval | None) -> str:
    inside = f' [{100 * interval.low:.1f}, {100 * interval.high:.1f}]' if interval else ''
    return f'{100 * mean:.1f}{inside}'


def _loss(mean: float, interval: Interval | None) -> str:
    inside = f' [{interval.low:.3f}, {interval.high:.3f}]' if interval else ''
    return f'{mean:.3f}{inside}'

"""Report of a sweep: a CSV file with a row for each run, and sections with means over seeds."""

import csv
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from malora_jax import files
from malora_jax.analysis import page
from malora_jax.analysis.page import BulletList, Section, Text
from malora_jax.analysis.sections.averages import averages_section, by_task_section
from malora_jax.analysis.sections.fields import FieldPoints, field_section
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun, SeedGroup
from malora_jax.runs.paper import PAPER_TABLES, PaperRow
from malora_jax.sweeps.config import SweepConfig
from malora_jax.sweeps.expand import SweepRun

_Runs = Mapping[str, SweepRun]


def write_report(
    workdir: pathlib.Path, sweep: SweepConfig, runs: _Runs, errors: Mapping[str, str]
) -> str:
    """Write `runs.csv`, `report.md`, `report.html`, `analysis.json` and the plots.

    Args:
        workdir: Directory of the sweep.
        sweep: Sweep, which defines what to plot and which table of the paper to show.
        runs: Runs of the sweep by name.
        errors: Errors of the failed runs by name.

    Returns:
        The report in Markdown.

    Raises:
        UserError: No run is finished yet.
    """
    loaded = {name: LoadedRun(workdir / name) for name in runs}
    finished = {name: run for name, run in loaded.items() if run.is_finished}
    if not finished:
        reasons = [f'; {name}: {error}' for name, error in errors.items()]
        raise UserError(f'No run of the sweep in {workdir} is finished{"".join(reasons[:1])}.')
    _write_csv(workdir / 'runs.csv', runs, finished, errors)
    groups = _groups(sweep, runs, finished)
    model = next(iter(finished.values())).results['model']
    sections = [
        *_sections(workdir, sweep, runs, groups),
        *_progress_sections(sweep, runs, finished, groups, errors),
    ]
    return page.write(f'{workdir.name}: {model}', sections, workdir)


def _groups(
    sweep: SweepConfig, runs: _Runs, finished: Mapping[str, LoadedRun]
) -> dict[str, SeedGroup]:
    """Return the seed groups of the finished runs, by name of the group."""
    found = {}
    for row in dict.fromkeys(runs[name].seed_group for name in finished):
        names = [name for name in finished if runs[name].seed_group == row]
        tasks = [*finished[names[0]].results['tasks']]
        paper = _paper_row(sweep, tasks, runs[names[0]])
        found[row] = SeedGroup(row, tasks, [finished[name] for name in names], paper=paper)
    return found


def _paper_row(sweep: SweepConfig, tasks: Sequence[str], run: SweepRun) -> PaperRow | None:
    """Return the row of the paper's table that has the method, settings and tasks of a run.

    None if there is no such row, or if the report shows no table of the paper.
    """
    if not sweep.report.table:
        return None
    table = PAPER_TABLES[sweep.report.table]
    name = table.row_of(run.config) if {*tasks} == {*table.tasks} else None
    return table.rows[name] if name else None


def _sections(
    workdir: pathlib.Path, sweep: SweepConfig, runs: _Runs, groups: Mapping[str, SeedGroup]
) -> Iterator[Section]:
    first = {row: next(run for run in runs.values() if run.seed_group == row) for row in groups}
    yield averages_section([*groups.values()], {row: run.values for row, run in first.items()})
    yield by_task_section([*groups.values()])
    for field in sweep.report.plots or _numeric_fields(runs):
        lines: dict[str, list[tuple[float, SeedGroup]]] = {}
        for row, group in groups.items():
            label = _line_label(first[row], sweep.linked_fields(first[row].variant, field))
            lines.setdefault(label, []).append((_value(first[row], field), group))
        points: dict[str, FieldPoints] = {
            label: sorted(line, key=lambda point: point[0]) for label, line in lines.items()
        }
        connected = not (sweep.random_search and field in sweep.random_search.fields)
        yield field_section(field, points, sweep.report.metrics, workdir, connected)


def _progress_sections(
    sweep: SweepConfig,
    runs: _Runs,
    finished: Mapping[str, LoadedRun],
    groups: Mapping[str, SeedGroup],
    errors: Mapping[str, str],
) -> Iterator[Section]:
    """Yield sections on progress, failed runs and unfinished runs."""
    waiting = [name for name in runs if name not in finished and name not in errors]
    yield Section(
        'progress',
        'Progress',
        [Text(f'{len(finished)} of {len(runs)} runs are finished.'), *_paper_note(sweep, groups)],
        {'finished': [*finished], 'failed': dict(errors), 'waiting': waiting},
    )
    if errors:
        failed = [f'{name}: {error}' for name, error in errors.items()]
        yield Section('failed', 'Failed', [BulletList(failed)])
    if waiting:
        yield Section('waiting', 'Not finished', [Text(', '.join(waiting) + '.')])


def _paper_note(sweep: SweepConfig, groups: Mapping[str, SeedGroup]) -> list[Text]:
    if not sweep.report.table:
        return []
    title = PAPER_TABLES[sweep.report.table].title
    if any(group.paper for group in groups.values()):
        return [Text(f'Numbers in italics are from the paper ({title}), for LLaMA-2 7B.')]
    text = f"The tasks are not those of the paper's {title}, so its numbers are not comparable."
    return [Text(text)]


def _numeric_fields(runs: _Runs) -> list[str]:
    """Return the swept fields that have several numbers as values."""
    found: dict[str, set[Any]] = {}
    for run in runs.values():
        for name, value in run.values.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            found.setdefault(name, set()).update([value] if is_number else [])
    return [name for name, values in found.items() if len(values) > 1]


def _line_label(run: SweepRun, linked_fields: set[str]) -> str:
    """Return the label of a plotted line: the variant and the values of its constant fields.

    The fields in `linked_fields` vary along the line, so the label does not contain them.
    """
    others = [
        f'{name.rsplit(".", 1)[-1]} {value}'
        for name, value in run.values.items()
        if name not in linked_fields
    ]
    return ', '.join([run.variant, *others])


def _value(run: SweepRun, field: str) -> float:
    """Return a field's value as the sweep sets it, or else as the run's config has it.

    The two may differ for adapter.rank. With `subspace_share`, the sweep sets the rank budget r,
    from which the rank r̄ in the config is computed.
    """
    return run.values.get(field, flatten_dict(dict(run.config), sep='.').get(field))


def _write_csv(
    path: pathlib.Path,
    runs: Mapping[str, SweepRun],
    finished: Mapping[str, LoadedRun],
    errors: Mapping[str, str],
) -> None:
    rows = [_csv_row(run, finished.get(name), errors.get(name, '')) for name, run in runs.items()]
    head = list(dict.fromkeys(column for row in rows for column in row))
    with files.atomic_write(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(rows)


def _csv_row(run: SweepRun, loaded: LoadedRun | None, error: str) -> dict[str, Any]:
    named = {'run': run.name, 'row': run.seed_group, 'seed': run.seed, **run.values}
    if loaded is None:
        return named | {'state': 'failed' if error else 'unfinished', 'error': error}
    results = loaded.results
    tasks = results['tasks']
    adapter = {field: run.config['adapter'][field] for field in ('rank', 'shared_rank')}
    return {
        **named,
        'state': 'finished',
        'error': '',
        **{f'config.adapter.{field}': value for field, value in adapter.items()},
        'score': results['average']['after'],
        'loss': loaded.task_mean('loss_after'),
        **{f'score/{name}': task['after'] for name, task in tasks.items()},
        **{f'loss/{name}': task['loss_after'] for name, task in tasks.items()},
        'score_before': results['average']['before'],
        'trainable': results['parameters']['trainable'],
        'steps': results['steps'],
        'tokens': results['tokens'],
        'train_time_s': results['train_time_s'],
    }

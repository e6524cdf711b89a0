"""Grouping of runs into the rows of a report, and checks that they are comparable.

The tables of a report have a row for the base model, and one for each group of runs that share
everything but their seed. The runs of a row may also be single-task runs, one for each task.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from malora_jax.errors import UserError
from malora_jax.runs.loading import LoadedRun
from malora_jax.runs.paper import PaperTable
from malora_jax.runs.seed_group import SeedGroup, mismatch
from malora_jax.training.config import field_defaults

BASE_ROW = 'base'
# Config fields that do not affect results, apart from rounding.
_IGNORED_FIELDS = (
    *('data.directory', 'data.workers', 'evaluation.batch_size', 'training.checkpoint_every'),
    *('training.keep_checkpoints', 'training.remat', 'model.attention'),
)
# Config fields that name the tasks of a run, or depend on them.
_TASK_FIELDS = ('data.tasks', 'data.weights', 'data.task_settings', 'evaluation.tasks')
# Config fields in which rows are expected to differ.
_ROW_FIELDS = ('seed', 'method', 'data.tasks', 'evaluation.tasks')


def check_comparable(runs: Sequence[LoadedRun]) -> None:
    """Check that scores and losses of runs are comparable.

    Example:
        check_comparable(read_runs([pathlib.Path('runs/malora'), pathlib.Path('runs/lora')]))

    Raises:
        UserError: Two runs differ in their base model or template, or in the held-out questions or
            the scoring of a task.
    """
    for one, other in itertools.combinations(runs, 2):
        difference = mismatch(one, other)
        if difference:
            raise UserError(
                f'The runs {one.path} and {other.path} differ in their {difference}: they cannot '
                'be compared.'
            )


def seed_groups(runs: Sequence[LoadedRun], table: PaperTable | None = None) -> list[SeedGroup]:
    """Group finished runs into rows: the base model, the paper's rows in its order, then others.

    A run that belongs to no row of the paper gets a row that is named after its directory, without
    the suffix `-seedN`. Single-task runs with directories named NAME-TASK share the row
    NAME_single. Without a table, runs that do not belong in one row get rows of their own.

    Example:
        groups = seed_groups(read_runs([pathlib.Path('runs/table2')]), PAPER_TABLES['table2'])

    Args:
        runs: Finished runs, at least one.
        table: Table of the paper that the runs reproduce; None for no table. With a table, each row
            has the tasks of the table, and the runs must be comparable.

    Raises:
        UserError: There is a table, and one of these is true: a run is not scored on the table's
            tasks; a run has the name of a row of the table, but another adapter; two runs are not
            comparable; or two runs of a row differ in more than seed and tasks, or have the same
            seed and tasks.
    """
    tasks = [*table.tasks] if table else _scored_tasks(runs)
    grouped: dict[str, list[LoadedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.name)) if table else runs:
        grouped.setdefault(_row_name(run, table), []).append(run)
    if table:
        check_comparable(runs)
        names = [*table.rows, *sorted(grouped.keys() - table.rows.keys())]
        for members in grouped.values():
            _check_row(members)
    else:
        grouped = dict(_split_mixed_rows(grouped))
        names = [*grouped]
    run_by_task = {task: run for run in reversed(runs) for task in _scored_tasks([run])}
    base_runs = [run for run in runs if run in run_by_task.values()]
    paper = table.rows if table else {}
    return [
        SeedGroup(BASE_ROW, tasks, base_runs, is_base=True, paper=paper.get(BASE_ROW)),
        *(
            SeedGroup(name, tasks, grouped[name], paper=paper.get(name))
            for name in names
            if name in grouped
        ),
    ]


def single_task_rows(groups: Sequence[SeedGroup], group: SeedGroup) -> dict[str, SeedGroup]:
    """Return, for each task, the single-task row that a multi-task row is compared with.

    A single-task row of the same method is preferred to one of LoRA; other methods are not used.
    Both rows must be scored on the same questions. Tasks without such a single-task row are
    omitted.

    Args:
        groups: Rows of the report, among them the single-task rows.
        group: Multi-task row to compare. For any other row the result is empty.
    """
    if group.is_single_task or group.is_base:
        return {}
    singles = [
        other
        for method in (group.method, 'lora')
        for other in groups
        if other.is_single_task and other.method == method
    ]
    rows: dict[str, SeedGroup] = {}
    for other in singles:
        for task in other.tasks_paired_with(group):
            rows.setdefault(task, other)
    return {task: rows[task] for task in group.tasks if task in rows}


def differing_fields(groups: Sequence[SeedGroup]) -> dict[str, dict[str, list[str]]]:
    """Return the config fields in which rows differ besides method, adapter, seed and tasks.

    Returns:
        For each field, a dict from each of its values (as the `repr` string) to the names of the
        rows that have this value.
    """
    settings = {
        group.name: _relevant_fields(group.runs[0]) for group in groups if not group.is_base
    }
    differing = {}
    for field in sorted({field for fields in settings.values() for field in fields}):
        values: dict[str, list[str]] = {}
        for name, fields in settings.items():
            values.setdefault(repr(fields.get(field)), []).append(name)
        if len(values) > 1 and field not in _ROW_FIELDS and not field.startswith('adapter.'):
            differing[field] = values
    return differing


def _scored_tasks(runs: Sequence[LoadedRun]) -> list[str]:
    return [*dict.fromkeys(task for run in runs for task in run.results['tasks'])]


def _row_name(run: LoadedRun, table: PaperTable | None) -> str:
    """Return the name of a run's row.

    It is the name of the matching row of `table`. Without a matching row, the name is derived from
    the run's directory.
    """
    tasks, single = {*run.results['tasks']}, run.is_single_task
    name = re.sub(r'-seed\d+$', '', run.name)
    if single:
        # A task may be trained on another dataset than it is scored on.
        short = name.removesuffix(f'-{min(tasks)}')
        name = f'{short}_single' if short != name else name
    if table is None:
        return name
    if not (len(tasks) == 1 and tasks <= {*table.tasks} if single else tasks == {*table.tasks}):
        raise UserError(
            f'The run {run.path} is scored on {", ".join(sorted(tasks))}; for {table.title}, it '
            f'must be {"one" if single else "all"} of {", ".join(table.tasks)}.'
        )
    row = table.row_of(run.raw_config)
    if row:
        return row
    if name in table.rows or name == BASE_ROW:
        raise UserError(
            f'The run {run.path} has another adapter than the row {name} of {table.title}: rename '
            'its directory to give it a row of its own.'
        )
    return name


def _split_mixed_rows(
    grouped: Mapping[str, Sequence[LoadedRun]],
) -> list[tuple[str, list[LoadedRun]]]:
    """Return rows of runs that belong together.

    The runs of a group belong together if they differ only in seed and tasks and are comparable.
    Otherwise, each run of the group gets a row of its own, named after the run.

    Args:
        grouped: Runs by name of the row.
    """
    rows = []
    for name, members in grouped.items():
        try:
            _check_row(members)
            check_comparable(members)
            rows.append((name, [*members]))
        except UserError:
            rows += [(run.name, [run]) for run in members]
    return rows


def _relevant_fields(run: LoadedRun) -> dict[str, Any]:
    """Return the config fields that affect the results of a run, by their dotted names."""
    fields = field_defaults() | flatten_dict(dict(run.raw_config), sep='.')
    return {field: value for field, value in fields.items() if field not in _IGNORED_FIELDS}


def _check_row(runs: Sequence[LoadedRun]) -> None:
    """Check that runs may share a row: they must differ only in their seed and their tasks.

    Raises:
        UserError: Two runs differ in another config field, or have the same seed and tasks.
    """
    with_settings = [(run, _relevant_fields(run)) for run in runs]
    for (one, settings), (other, others) in itertools.combinations(with_settings, 2):
        same_tasks = one.results['tasks'].keys() == other.results['tasks'].keys()
        ignored = {'seed'} if same_tasks else {'seed', *_TASK_FIELDS}
        fields = sorted({*settings, *others} - ignored)
        differ = [field for field in fields if settings.get(field) != others.get(field)]
        if not differ and not (same_tasks and settings['seed'] == others['seed']):
            continue
        what = f'differ in {differ[0]}' if differ else 'have the same seed'
        raise UserError(
            f'The runs {one.path} and {other.path} belong to the same row, but {what}: move one of '
            'them to another directory.'
        )

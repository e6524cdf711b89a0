"""Tables of the fair comparison, made from the records of its runs in `docs/results/fair_*`.

docs/comparison_protocol.md describes the studies. A study may be unfinished: its tables then have
the runs that are recorded.
"""

import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from configs import fair_comparison, fair_real_tasks
from configs.sweeps import fair_methods, fair_rates, fair_real_rates, fair_task_counts
from configs.sweeps import fair_real_tasks as fair_real_sweep
from docs.records import RESULTS
from malora_jax import markdown
from malora_jax.analysis import cells
from malora_jax.runs import LoadedRun, SeedGroup
from malora_jax.runs.paper import PAPER_TABLES
from malora_jax.runs.records import SUFFIX, restore_record
from malora_jax.statistics import PairedDifference
from malora_jax.sweeps import SweepRun, expand

STUDIES = {
    'fair_rates': fair_rates,
    'fair_methods': fair_methods,
    'fair_task_counts': fair_task_counts,
    'fair_real_rates': fair_real_rates,
    'fair_real_tasks': fair_real_sweep,
}
# Runs of study A whose current records have other initial values.
EARLIER = 'fair_methods_earlier'
NO_RUNS = 'No run of this study is recorded yet.'
# Number of seeds that a verdict needs, even while more are planned.
MIN_SEEDS = 3
# Row of the fair comparison that is made of one run for each task.
BY_TASK = 'by_task'


@functools.cache
def _restored(study: str) -> tempfile.TemporaryDirectory:
    """Restore the records of a study; the directory is removed when Python ends."""
    home = tempfile.TemporaryDirectory()
    for record in sorted((RESULTS / study).glob(f'*{SUFFIX}')):
        restore_record(record, pathlib.Path(home.name) / record.name.removesuffix(SUFFIX))
    return home


@functools.cache
def planned_runs(study: str) -> dict[str, SweepRun]:
    """Return the runs of a study's sweep by name, whether they are recorded or not."""
    sweeps = STUDIES | {EARLIER: fair_methods}
    return expand(sweeps[study].get_config().to_dict())


@functools.cache
def recorded_runs(study: str) -> dict[str, LoadedRun]:
    """Return the recorded runs of a study by name, in the order of its sweep."""
    home = pathlib.Path(_restored(study).name)
    return {name: LoadedRun(home / name) for name in planned_runs(study) if (home / name).is_dir()}


@functools.cache
def groups(study: str) -> dict[str, SeedGroup]:
    """Return the rows of a study: recorded runs that differ only in their seed, by name.

    Runs on each task alone make one row: `by_task` of study A, and `METHOD-1` of study B.
    """
    runs: dict[str, list[LoadedRun]] = {}
    for name, run in recorded_runs(study).items():
        row = name.rpartition('-seed')[0]
        method, _, variant = row.partition('-')
        if method == BY_TASK:
            row = BY_TASK
        elif variant in fair_task_counts.TASKS:
            row = f'{method}-1'
        runs.setdefault(row, []).append(run)
    return {
        row: SeedGroup(row, list(dict.fromkeys(task for run in each for task in run.tasks)), each)
        for row, each in runs.items()
    }


def progress() -> str:
    """Return the table of how many runs of each study are recorded, with tokens and hours."""
    rows = [('study', 'runs', 'recorded', 'tokens, million', 'hours of training', 'JAX')]
    for study in STUDIES:
        runs = recorded_runs(study).values()
        results = [run.results for run in runs]
        rows.append(
            (
                f'`{study}`',
                f'{len(planned_runs(study))}',
                f'{len(results)}',
                f'{sum(each["tokens"] for each in results) / 1e6:.2f}',
                f'{sum(each["train_time_s"] for each in results) / 3600:.1f}',
                ', '.join(sorted({each['versions']['jax'] for each in results})) or '–',
            )
        )
    return markdown.table(rows)


def validation_losses(study: str) -> dict[str, dict[float, float]]:
    """Return the last validation loss of each screening run, by row and learning rate.

    A row is a method, or a control with a learning rate of its own.
    """
    found: dict[str, dict[float, float]] = {}
    for name, run in recorded_runs(study).items():
        rate = run.raw_config['optimizer']['learning_rate']
        found.setdefault(planned_runs(study)[name].variant, {})[rate] = run.records[-1][
            'validation_loss'
        ]
    return {row: dict(sorted(losses.items())) for row, losses in found.items()}


def chosen_rates(study: str) -> dict[str, float]:
    """Return the learning rate with the lowest validation loss, by row.

    A row is left out as long as its best rate is the lowest or highest that was screened.
    """
    found = {}
    for row, losses in validation_losses(study).items():
        best = min(losses, key=losses.__getitem__)
        if best not in (min(losses), max(losses)):
            found[row] = best
    return found


def rates_table(study: str) -> str:
    """Return the table of validation losses by method and learning rate; the best is bold."""
    losses = validation_losses(study)
    if not losses:
        return NO_RUNS
    rates = sorted({rate for each in losses.values() for rate in each})
    rows = [('method', *(f'{rate:g}' for rate in rates))]
    for method, each in losses.items():
        best = min(each, key=each.__getitem__)
        texts = {rate: f'{loss:.3f}' for rate, loss in each.items()}
        texts[best] = f'**{texts[best]}**'
        rows.append((f'`{method}`', *(texts.get(rate, '') for rate in rates)))
    return markdown.table(rows)


def methods_table(names: Iterable[str], references: Sequence[str], paper: str = '') -> str:
    """Return the table of losses and scores of rows of study A.

    Args:
        names: Names of the rows.
        references: Names of the rows from which differences are shown. The lowest difference from
            the first one is shown first.
        paper: Name of the paper's table whose average scores are shown alongside; '' for none.
    """
    published = PAPER_TABLES[paper].rows if paper else {}
    known = groups('fair_methods')
    rows = [known[name] for name in names if name in known]
    if not rows:
        return NO_RUNS
    head = ['row', 'trained parameters', 'learning rate', 'seeds', 'loss']
    head += [f'loss − {name}' for name in references] + ['exact match, %']
    head += [f'*{PAPER_TABLES[paper].title}, %*'] if paper else []
    table = [head]
    for group in sorted(rows, key=lambda group: _mean_difference(group.name, references[0])):
        cells_of_row = [
            f'`{group.name}`',
            f'{trained_parameters(group):,}',
            f'{group.runs[0].raw_config["optimizer"]["learning_rate"]:g}',
            f'{len(group.by_seed("loss"))}',
            cells.loss(group.mean_over_seeds('loss'), group.interval_over_seeds('loss')),
            *(difference_cell('fair_methods', group.name, name) for name in references),
            cells.score((group.mean_over_seeds('score'), group.interval_over_seeds('score'))),
        ]
        if paper:
            row = published.get(group.name)
            cells_of_row.append(f'*{row.average}*' if row else '–')
        table.append(cells_of_row)
    return markdown.table(table)


def trained_parameters(group: SeedGroup) -> int:
    """Return the number of trained parameters of a row, all of its tasks together."""
    count = group.parameters['trainable']
    return count * len(group.tasks) if group.name == BY_TASK else count


def differences_by_seed(
    study: str, row: str, reference: str, tasks: tuple[str, ...] = (), metric: str = 'loss'
) -> dict[int, dict[str, np.ndarray]]:
    """Return the loss or score of a row of a study minus that of another, on each question.

    Args:
        study: Name of the study.
        row: Name of the row.
        reference: Name of the row to subtract.
        tasks: Names of the tasks; () for all tasks of the row.
        metric: 'loss' or 'score'.

    Returns:
        For each seed that both rows have: (Q,) differences by task. It is empty if the rows are the
        same, if one of them is not recorded, or if they have no seed with the same questions.
    """
    pair = _recorded_pair(study, row, reference)
    return pair[0].differences_by_seed(pair[1], metric, tasks) if pair else {}


# Several tables and pictures show the same differences, whose intervals take a second each.
@functools.cache
def loss_difference(
    study: str, row: str, reference: str, tasks: tuple[str, ...] = ()
) -> PairedDifference | None:
    """Return the mean of `differences_by_seed` with its interval; None if there are none."""
    pair = _recorded_pair(study, row, reference)
    return pair[0].difference_over_seeds(pair[1], 'loss', tasks) if pair else None


def _recorded_pair(study: str, row: str, reference: str) -> tuple[SeedGroup, SeedGroup] | None:
    """Return two rows of a study; None if they are the same, or if one of them is not recorded."""
    known = groups(study)
    if row == reference or row not in known or reference not in known:
        return None
    return known[row], known[reference]


def difference_cell(study: str, row: str, reference: str, tasks: tuple[str, ...] = ()) -> str:
    """Return `loss_difference` as text, with the number of seeds if these allow no verdict."""
    change = loss_difference(study, row, reference, tasks)
    seeds = len(differences_by_seed(study, row, reference, tasks))
    if change and seeds < MIN_SEEDS:
        return f'{cells.nats(change)}, {seeds} seed{"s" if seeds > 1 else ""}'
    return cells.loss_difference(change)


def _mean_difference(row: str, reference: str) -> float:
    """Return the loss of a row of study A minus that of another; 0 if there is no difference."""
    change = loss_difference('fair_methods', row, reference)
    return change.mean if change else 0.0


# Columns of `_results_table`: heading, method, and key of the result of a task.
LOSSES = (('base model, loss', 'lora', 'loss_before'), ('LoRA, loss', 'lora', 'loss_after'))


def base_table() -> str:
    """Return the table of losses and scores of the base model and of LoRA, by task of study A."""
    scores = (
        ('base model, exact match, %', 'lora', 'before'),
        ('LoRA, exact match, %', 'lora', 'after'),
    )
    return _results_table('fair_methods', (*LOSSES, *scores))


def _results_table(study: str, columns: Sequence[tuple[str, str, str]]) -> str:
    """Return the table of means over the seeds, by task, without methods that have no run."""
    known = groups(study)
    if 'lora' not in known:
        return NO_RUNS
    columns = [column for column in columns if column[1] in known]
    rows = [('task', *(heading for heading, _, _ in columns))]
    for task in known['lora'].tasks:
        rows.append((task, *(_result_cell(known[name], task, key) for _, name, key in columns)))
    return markdown.table(rows)


def _result_cell(group: SeedGroup, task: str, key: str) -> str:
    mean = statistics.fmean(run.results['tasks'][task][key] for run in group.runs)
    return cells.loss(mean) if key.startswith('loss') else cells.score((mean, None))


def tasks_table(study: str, names: tuple[str, ...]) -> str:
    """Return the table of the differences of some rows of a study from LoRA on each task."""
    known = groups(study)
    if 'lora' not in known:
        return NO_RUNS
    tasks = known['lora'].tasks
    rows = [['row', *tasks]]
    for name in names:
        if name in known and name != 'lora':
            changes = (difference_cell(study, name, 'lora', (task,)) for task in tasks)
            rows.append([f'`{name}`', *changes])
    return markdown.table(rows)


def real_tasks_table() -> str:
    """Return the table of study C: losses, differences and accuracy."""
    known = groups('fair_real_tasks')
    if not known:
        return NO_RUNS
    paper = PAPER_TABLES['table2']
    head = ('method', 'seeds', 'loss', 'loss − lora', 'loss − molora', 'accuracy, %')
    rows = [(*head, f'*{paper.title}, %*')]
    for name, group in known.items():
        changes = (
            difference_cell('fair_real_tasks', name, reference) for reference in ('lora', 'molora')
        )
        rows.append(
            (
                f'`{name}`',
                f'{len(group.by_seed("loss"))}',
                cells.loss(group.mean_over_seeds('loss'), group.interval_over_seeds('loss')),
                *changes,
                cells.score((group.mean_over_seeds('score'), group.interval_over_seeds('score'))),
                f'*{paper.rows[name].average}*',
            )
        )
    return markdown.table(rows)


def real_scores_table() -> str:
    """Return the table of losses and accuracies of the base model and of the methods in study C."""
    scores = (
        ('one answer, %', 'lora', 'best_constant'),
        ('base model, %', 'lora', 'before'),
        *((f'`{name}`, %', name, 'after') for name in sorted(fair_task_counts.METHODS)),
    )
    return _results_table('fair_real_tasks', (*LOSSES, *scores))


# Learning rates in the configs, which must be those that the screening has chosen.
CONFIGURED_RATES: Mapping[str, Mapping[str, float]] = {
    'fair_rates': fair_comparison.LEARNING_RATES,
    'fair_real_rates': fair_real_tasks.LEARNING_RATES,
}
PARTS: dict[str, Callable[[], str]] = {
    'fair progress': progress,
    'fair rates': functools.partial(rates_table, 'fair_rates'),
    'fair methods': functools.partial(
        methods_table, fair_rates.METHODS, ('lora', 'molora'), 'table1'
    ),
    'fair ablations': functools.partial(
        methods_table, ('malora', 'molora', *fair_methods.ABLATIONS), ('malora', 'molora'), 'table3'
    ),
    'fair controls': functools.partial(
        methods_table,
        ('lora', 'molora', 'malora', *fair_methods.CONTROLS, BY_TASK),
        ('lora', 'molora', 'malora'),
    ),
    'fair base': base_table,
    'fair tasks': functools.partial(tasks_table, 'fair_methods', (*fair_rates.METHODS, BY_TASK)),
    'fair real rates': functools.partial(rates_table, 'fair_real_rates'),
    'fair real tasks': real_tasks_table,
    'fair real scores': real_scores_table,
    'fair real differences': functools.partial(
        tasks_table, 'fair_real_tasks', fair_task_counts.METHODS
    ),
}


class _RowValues(dict[str, Any]):
    """Numbers of a row of study A, and its differences from other rows under `minus_ROW`.

    A difference takes a second, so it is computed only if a text names it.
    """

    def __init__(self, row: str, group: SeedGroup):
        super().__init__(
            loss=group.mean_over_seeds('loss'),
            score=100 * group.mean_over_seeds('score'),
            seeds=len(group.by_seed('loss')),
            minus=named_numbers(loss_difference('fair_methods', row, 'lora')),
        )
        self._row = row

    def __missing__(self, key: str) -> dict[str, float] | None:
        kind, _, reference = key.partition('_')
        if kind != 'minus':
            raise KeyError(key)
        return named_numbers(loss_difference('fair_methods', self._row, reference))


def values() -> dict[str, Any]:
    """Return the numbers of study A and of the screening that texts name.

    The keys are `rates`, the chosen learning rates by method; `screened`, the lowest validation
    losses of the screening by method; and by row `loss`, `score` (in percent), `seeds`, `minus`,
    the difference of the losses from that of LoRA, and `minus_ROW`, the difference from another
    row.
    """
    screened = validation_losses('fair_rates')
    rows = {name: _RowValues(name, group) for name, group in groups('fair_methods').items()}
    return {
        'rates': chosen_rates('fair_rates'),
        'screened': {method: min(losses.values()) for method, losses in screened.items()},
        **rows,
    }


def named_numbers(change: PairedDifference | None) -> dict[str, float] | None:
    """Return the mean of a difference and the ends of its interval, under the names of texts."""
    return {'mean': change.mean, **change.interval._asdict()} if change else None


VALUES: dict[str, Callable[[], Mapping[str, Any]]] = {'fair': values}

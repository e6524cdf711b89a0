"""What a run found: answers, scores, results.json, the table and the plots."""

import dataclasses
import pathlib
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from malora_jax import buckets, files
from malora_jax.adapters import routers
from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.methods import settings_of
from malora_jax.distributed import hosts
from malora_jax.evaluation import runner
from malora_jax.training import run_files
from malora_jax.training.checkpoint import Best
from malora_jax.training.plan import parameter_counts
from malora_jax.training.setup import Setup
from malora_jax.training.step import mean_balance_loss, routing_metrics
from malora_jax.training.validation import curve
from malora_jax.training.workdir import versions


def scored(
    setup: Setup, workdir: pathlib.Path, when: str, variables: Any | None
) -> list[runner.Answer]:
    """Answers to the held-out questions, from `answers_WHEN.jsonl` if it is there already.

    Args:
        setup: the run's parts.
        workdir: the run's directory.
        when: 'before' or 'after'.
        variables: the adapted model's collections, or None for the base alone.

    Returns:
        The answers, task by task.

    Raises:
        UserError: the file is broken, or has not one answer to each question.
    """
    path = workdir / f'answers_{when}.jsonl'
    if hosts.agree(path.exists()):
        held_out = {split.task_name: len(split.held_out) for split in setup.splits}
        return run_files.read_answers(path, held_out)
    answers = setup.answer_held_out(variables, f'score {when}')
    if hosts.is_first():
        files.write_json_lines(path, [dataclasses.asdict(answer) for answer in answers])
        buckets.push()
    return answers


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run has to report.

    Attributes:
        records: of metrics.jsonl.
        best: the checkpoint that was scored, if it was chosen by its validation loss.
        before, after: scored answers of the base and of the adapted model.
        routing: what the routers did with the held-out examples; empty without routers.
    """

    records: Sequence[Mapping[str, Any]]
    best: Best | None
    before: Sequence[runner.Answer]
    after: Sequence[runner.Answer]
    routing: Mapping[str, routers.RoutingSums]


class PlotData(NamedTuple):
    """Data for the plots of a finished run.

    Attributes:
        title: Method and base model.
        records: Records of `metrics.jsonl`.
        tasks: `tasks` of `results.json`.
        load: Shares of the token slots by layer, scored task and expert, (L, G, E), by linear;
            empty without routers.
    """

    title: str
    records: Sequence[Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]
    load: Mapping[str, np.ndarray]


# Writes plots into the directory of a run; training itself imports no plotting library.
PlotWriter = Callable[[pathlib.Path, PlotData], None]


def write_results(
    setup: Setup,
    workdir: pathlib.Path,
    found: Found,
    wall_time: float,
    write_plots: PlotWriter | None = None,
) -> dict[str, Any]:
    """Write the plots, then `results.json`, whose presence says that the run is finished.

    Args:
        setup: The run's parts.
        workdir: The run's directory.
        found: The run's records and answers.
        wall_time: Seconds of the run, without the work of killed processes since their last
            checkpoints.
        write_plots: Writer of the plots, such as `analysis.run_plots.write_run_plots`; None to
            write none.

    Returns:
        What was written to `results.json`.
    """
    tasks = _task_results(setup, found)
    run, last, routing = setup.run, found.records[-1], found.routing
    keys = ('before', 'best_constant', 'after')
    results = {
        'model': run.model.name,
        'method': run.method,
        'adapter': dataclasses.asdict(settings_of(run.adapter)),
        'tasks': tasks,
        'average': {key: runner.average({n: t[key] for n, t in tasks.items()}) for key in keys},
        'average_interval': {
            when: runner.average_interval(runner.by_task(answers))
            for when, answers in (('before', found.before), ('after', found.after))
        },
        'parameters': parameter_counts(setup.model),
        'routing': _routing_results(routing),
        'steps': last['step'],
        'best_step': found.best.step if found.best else None,
        'validation_loss': found.best.loss if found.best else None,
        'validation_curve': curve(found.records),
        'epochs': last['epoch'],
        'training_data': _training_data(setup, last),
        'tokens': last['total_tokens'],
        'train_time_s': last['train_time_s'],
        'wall_time_s': wall_time,
        'peak_memory_bytes': _peak_memory(),
        'seed': run.seed,
        'versions': versions(),
    }
    if not hosts.is_first():
        return results
    if write_plots:
        scored = [bool(split.held_out) for split in setup.splits]
        load = _load_by_linear(routing, scored)
        write_plots(workdir, PlotData(run.title, found.records, tasks, load))
    files.write_json(workdir / 'results.json', results)
    return results


def format_table(results: Mapping[str, Any]) -> str:
    """The scores as a table of plain text, in percent."""
    rows: list[tuple[str, ...]] = [('task', 'before', 'constant', 'after', 'questions')]
    for name, task in results['tasks'].items():
        scores = [f'{100 * task[key]:.1f}' for key in ('before', 'best_constant', 'after')]
        rows.append((name, *scores, str(task['examples'])))
    average = results['average']
    scores = [f'{100 * average[key]:.1f}' for key in ('before', 'best_constant', 'after')]
    rows.append(('average', *scores, ''))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0])
        + ''.join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    rule = '-' * len(lines[0])
    exact = all(task['metric'] == 'exact_match' for task in results['tasks'].values())
    measure = 'Exact match' if exact else 'Right answers'
    head = f'{measure} (%) of {results["method"]} on {results["model"]}, held-out questions'
    parts = [head, rule, lines[0], rule, *lines[1:-1], rule, lines[-1].rstrip(), rule]
    return '\n'.join(parts)


def _task_results(setup: Setup, found: Found) -> dict[str, dict[str, Any]]:
    before, after = (runner.by_task(answers) for answers in (found.before, found.after))
    results = {}
    for split in setup.splits:
        if not split.held_out:
            continue
        name = split.task_name
        answer, share = split.constant()
        results[name] = {
            'metric': split.task.scoring.metric,
            'before': runner.mean_score(before[name]),
            'after': runner.mean_score(after[name]),
            'before_interval': runner.interval(before[name]),
            'after_interval': runner.interval(after[name]),
            'more_before': runner.more_scores(before[name]),
            'more_after': runner.more_scores(after[name]),
            'best_constant': share,
            'best_constant_answer': answer,
            'examples': len(split.held_out),
            'loss_before': runner.mean_loss(before[name]),
            'loss_after': runner.mean_loss(after[name]),
            'scoring': setup.scoring(split),
        }
    return results


def _training_data(setup: Setup, last: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each task was trained on."""
    return {
        split.task_name: {
            **size.counts(),
            'epochs': last[f'examples/{split.task_name}'] / size.examples,
            'available': split.distinct,
            **split.origin,
        }
        for split, size in zip(setup.splits, setup.sizes, strict=True)
        if split.train
    }


def _routing_results(routing: Mapping[str, routers.RoutingSums]) -> dict[str, float]:
    """Balance (1 = balanced) and use of the experts on held-out examples; {} without routers."""
    if not routing:
        return {}
    metrics = {'balance_loss': mean_balance_loss(routing), **routing_metrics(routing)}
    return {name: float(value) for name, value in metrics.items()}


def _load_by_linear(
    routing: Mapping[str, routers.RoutingSums], scored: Sequence[bool]
) -> dict[str, np.ndarray]:
    """By linear, (L, G, E): the share of token slots by layer, task that is scored, and expert."""
    loads = {
        path.rsplit('/', 1)[-1]: np.asarray(sums.load)[:, scored] for path, sums in routing.items()
    }
    return {
        linear: loads[linear] / loads[linear].sum(axis=-1, keepdims=True)
        for linear in LINEARS
        if linear in loads
    }


def _peak_memory() -> int:
    """Bytes of this process at its largest, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024

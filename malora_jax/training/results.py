"""Results of a run: scored answers, `results.json`, the table of scores and the plots."""

import dataclasses
import functools
import pathlib
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from malora_jax import cloud_storage, files
from malora_jax.adapters import AdapterConfig, load_balancing
from malora_jax.adapters.config import LINEARS
from malora_jax.adapters.settings import settings_of
from malora_jax.distributed import hosts
from malora_jax.evaluation import runner, scores
from malora_jax.training import run_files
from malora_jax.training.checkpoint import BestCheckpoint
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.setup import Setup
from malora_jax.training.validation import validation_curve
from malora_jax.training.workdir import package_versions


def load_or_score_answers(
    setup: Setup, workdir: pathlib.Path, when: str, variables: Any | None
) -> list[runner.Answer]:
    """Return scored answers to the held-out questions.

    If `answers_WHEN.jsonl` exists, the answers are read from it. Otherwise the model answers the
    questions, and the file is written.

    Args:
        setup: Config, models and data of the run.
        workdir: Directory of the run.
        when: 'before' or 'after' training, part of the file name.
        variables: Collections of the adapted model; None for the base model alone.

    Returns:
        The answers, task by task.

    Raises:
        UserError: The file is broken, or does not have exactly one answer to each question.
    """
    path = workdir / f'answers_{when}.jsonl'
    if hosts.broadcast_from_first(path.exists()):
        held_out = {split.task_name: len(split.held_out) for split in setup.splits}
        return run_files.read_answers(path, held_out)
    answers = setup.answer_held_out(variables, f'score {when}')
    if hosts.is_first_process():
        files.write_json_lines(path, [dataclasses.asdict(answer) for answer in answers])
        cloud_storage.upload_changes()
    return answers


@dataclasses.dataclass(frozen=True)
class RunMeasurements:
    """Measurements of a finished run, from which its results are computed.

    Attributes:
        records: Records of `metrics.jsonl`.
        best: Checkpoint with the lowest validation loss, which is the one that was scored. None if
            no validation loss was measured; then the state after the last step was scored.
        before, after: Scored answers of the base model and of the adapted model.
        routing: Routing statistics on the held-out examples, by adapted linear; empty without
            routers.
    """

    records: Sequence[Mapping[str, Any]]
    best: BestCheckpoint | None
    before: Sequence[runner.Answer]
    after: Sequence[runner.Answer]
    routing: Mapping[str, load_balancing.RoutingSums]


class PlotData(NamedTuple):
    """Data for the plots of a finished run.

    Attributes:
        title: Method, base model and seed, for the titles of the plots.
        records: Records of `metrics.jsonl`.
        tasks: Section `tasks` of `results.json`.
        load: Expert load by name of the linear, arrays of shape (L, G, E). For each layer and
            scored task, it is the share of the task's routing assignments that each expert gets. A
            token has one assignment for each expert that the router chose. Empty without routers.
    """

    title: str
    records: Sequence[Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]
    load: Mapping[str, np.ndarray]


# Function that writes plots into the directory of a run. Callers pass it in, so that training does
# not import a plotting library.
PlotWriter = Callable[[pathlib.Path, PlotData], None]


def write_results(
    setup: Setup,
    workdir: pathlib.Path,
    measurements: RunMeasurements,
    wall_time: float,
    write_plots: PlotWriter | None = None,
) -> dict[str, Any]:
    """Write the plots of a run, then `results.json`, which marks the run as finished.

    Args:
        setup: Config, models and data of the run.
        workdir: Directory of the run.
        measurements: Records and answers of the run.
        wall_time: Seconds that the run took. A run that resumed also counts the training time of
            its earlier starts.
        write_plots: Function that writes the plots, such as
            `analysis.run_plots.write_run_plots`; None to write no plots.

    Returns:
        The content of `results.json`, also on processes that do not write it.
    """
    tasks = _task_results(setup, measurements)
    run, last, routing = setup.run, measurements.records[-1], measurements.routing
    keys = ('before', 'best_constant', 'after')
    results = {
        'model': run.model.name,
        'method': run.method,
        'adapter': dataclasses.asdict(settings_of(run.adapter)),
        'tasks': tasks,
        'average': {key: scores.average({n: t[key] for n, t in tasks.items()}) for key in keys},
        'average_interval': {
            when: scores.average_interval(scores.group_by_task(answers))
            for when, answers in (('before', measurements.before), ('after', measurements.after))
        },
        'parameters': count_model_parameters(setup.model),
        'routing': _routing_results(routing, setup.run.adapter),
        'steps': last['step'],
        'best_step': measurements.best.step if measurements.best else None,
        'validation_loss': measurements.best.loss if measurements.best else None,
        'validation_curve': validation_curve(measurements.records),
        'epochs': last['epoch'],
        'training_data': _training_data(setup, last),
        'tokens': last['total_tokens'],
        'train_time_s': last['train_time_s'],
        'wall_time_s': wall_time,
        'peak_memory_bytes': _peak_memory(),
        'seed': run.seed,
        'versions': package_versions(),
    }
    if not hosts.is_first_process():
        return results
    if write_plots:
        has_held_out = [bool(split.held_out) for split in setup.splits]
        load = _load_by_linear(routing, has_held_out)
        title = f'{run.title}, seed {run.seed}'
        write_plots(workdir, PlotData(title, measurements.records, tasks, load))
    files.write_json(workdir / 'results.json', results)
    return results


def format_table(results: Mapping[str, Any]) -> str:
    """Return a plain-text table of the scores, in percent.

    The column `constant` is the majority baseline: the score of the best constant answer. The
    interval is that of the score after training.

    Args:
        results: Content of `results.json`. Results of early versions may lack intervals.
    """
    header = ('task', 'before', 'constant', 'after', '95% interval', 'questions')

    def row(name: str, scores: Mapping[str, float], interval: Any, questions: str) -> Sequence[str]:
        percents = [f'{100 * scores[key]:.1f}' for key in ('before', 'best_constant', 'after')]
        return name, *percents, _format_interval(interval), questions

    rows = [
        row(name, task, task.get('after_interval'), str(task['examples']))
        for name, task in results['tasks'].items()
    ]
    average = row(
        'average', results['average'], results.get('average_interval', {}).get('after'), ''
    )
    name = f'{results["method"]} on {results["model"]}'
    return _format_scores(name, results['tasks'], header, rows, average)


def format_evaluation(evaluation: Mapping[str, Any], name: str) -> str:
    """Return a plain-text table of the scores of a single model, in percent.

    Args:
        evaluation: Scores, as `evaluate.evaluate` returns them.
        name: Name of the model, for the title.
    """
    header = ('task', 'score', '95% interval', 'questions')
    rows = [
        (task, f'{100 * t["score"]:.1f}', _format_interval(t['interval']), str(t['examples']))
        for task, t in evaluation['tasks'].items()
    ]
    interval = _format_interval(evaluation['average_interval'])
    average = ('average', f'{100 * evaluation["average"]:.1f}', interval, '')
    return _format_scores(name, evaluation['tasks'], header, rows, average)


def _format_interval(interval: Sequence[float] | None) -> str:
    return f'[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]' if interval else ''


def _format_scores(
    name: str,
    tasks: Mapping[str, Mapping[str, Any]],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    average: Sequence[str],
) -> str:
    """Return a plain-text table.

    Args:
        name: Name of the model, for the title.
        tasks: Results of each task, whose metric the title names.
        header: Names of the columns.
        rows: Cells of each task.
        average: Cells of the last row.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, average, strict=True)]
    head, *body, last = (
        row[0].ljust(widths[0])
        + ''.join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in (header, *rows, average)
    )
    rule = '-' * len(head)
    exact = all(task['metric'] == 'exact_match' for task in tasks.values())
    title = f'{"Exact match" if exact else "Right answers"} (%) of {name}, held-out questions'
    return '\n'.join([title, rule, head, rule, *body, rule, last.rstrip(), rule])


def _task_results(setup: Setup, measurements: RunMeasurements) -> dict[str, dict[str, Any]]:
    before, after = (
        scores.group_by_task(answers) for answers in (measurements.before, measurements.after)
    )
    results = {}
    for split in setup.splits:
        if not split.held_out:
            continue
        name = split.task_name
        answer, share = split.majority_baseline()
        results[name] = {
            'metric': split.task.scoring.metric,
            'before': scores.mean_score(before[name]),
            'after': scores.mean_score(after[name]),
            'before_interval': scores.interval(before[name]),
            'after_interval': scores.interval(after[name]),
            'more_before': scores.more_scores(before[name]),
            'more_after': scores.more_scores(after[name]),
            'best_constant': share,
            'best_constant_answer': answer,
            'examples': len(split.held_out),
            'loss_before': scores.mean_loss(before[name]),
            'loss_after': scores.mean_loss(after[name]),
            'scoring': setup.scoring_record(split),
        }
    return results


def _training_data(setup: Setup, last: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return facts about each task's training examples, by task.

    These are the number of examples and of their tokens, the number of epochs, and the file or
    dataset that the examples come from.

    Args:
        setup: Config, models and data of the run.
        last: Record of the last step, which has the number of examples drawn from each task.
    """
    return {
        split.task_name: {
            **size.to_dict(),
            'epochs': last[f'examples/{split.task_name}'] / size.examples,
            'available': split.num_available,
            **split.origin,
        }
        for split, size in zip(setup.splits, setup.sizes, strict=True)
        if split.train
    }


def _routing_results(
    routing: Mapping[str, load_balancing.RoutingSums], adapter: AdapterConfig
) -> dict[str, float]:
    """Return the load-balancing loss (1 = balanced) and the use of experts on held-out examples.

    The result is empty if the model has no routers.
    """
    if not routing:
        return {}
    return {name: float(value) for name, value in _routing_metrics(routing, adapter).items()}


# As one program, because each of twenty operations would be compiled on its own. It is at module
# level, so that runs with the same adapter in one process share it.
@functools.partial(jax.jit, static_argnames='adapter')
def _routing_metrics(
    routing: Mapping[str, load_balancing.RoutingSums], adapter: AdapterConfig
) -> dict[str, jax.Array]:
    loss = load_balancing.mean_balance_loss(routing, adapter)
    return {'balance_loss': loss, **load_balancing.routing_metrics(routing)}


def _load_by_linear(
    routing: Mapping[str, load_balancing.RoutingSums], has_held_out: Sequence[bool]
) -> dict[str, np.ndarray]:
    """Return the expert load by name of the linear, for plots.

    Args:
        routing: Routing statistics by path of the linear.
        has_held_out: For each task, whether it has held-out examples. Tasks without them are not
            scored, so the result omits them.

    Returns:
        (L, G, E) arrays as in `PlotData.load`: for each layer and scored task, the share of the
        routing assignments that each expert gets.
    """
    loads = {
        path.rsplit('/', 1)[-1]: np.asarray(sums.load)[:, has_held_out]
        for path, sums in routing.items()
    }
    return {
        linear: loads[linear] / loads[linear].sum(axis=-1, keepdims=True)
        for linear in LINEARS
        if linear in loads
    }


def _peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024

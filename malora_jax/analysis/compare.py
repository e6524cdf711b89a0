"""Finished runs side by side: a table of what they reached, and their curves."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import files, markdown
from malora_jax.analysis import plots
from malora_jax.errors import UserError
from malora_jax.training import run_files


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of its directory.
        config: what its config.json holds.
        results: of its results.json.
        records: of its metrics.jsonl.
        before, after: of its answers_before.jsonl and answers_after.jsonl.
    """

    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]

    @property
    def setting(self) -> dict[str, Any]:
        """What runs must share, where both have it, for losses and scores to be comparable."""
        questions: dict[str, list[str]] = {}
        for answer in self.after:
            questions.setdefault(answer['task'], []).append(answer['question'])
        return {
            'model': tuple(
                self.config['model'].get(field, '') for field in ('name', 'weights', 'quantize')
            ),
            'template': self.config['data']['template'],
            **{f'held-out questions of {task}': asked for task, asked in questions.items()},
            **{
                f'scoring of {task}': _without_sandbox(result.get('scoring', {}))
                for task, result in self.results['tasks'].items()
            },
        }

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was taken."""
        points = [(record['step'], record[name]) for record in self.records if name in record]
        return [step for step, _ in points], [value for _, value in points]


def compare(directory: pathlib.Path, output: pathlib.Path) -> str:
    """Writes `comparison.md` and `comparison.png` about all finished runs in a directory.

    Args:
        directory: each run is a directory in it.
        output: where the two files go.

    Returns:
        The table, in Markdown.

    Raises:
        UserError: as `read_runs`, or two runs are scored on other tasks.
    """
    runs = read_runs(directory)
    for run in runs[1:]:
        if run.results['tasks'].keys() != runs[0].results['tasks'].keys():
            raise _incomparable(directory, runs[0], run, 'tasks')
    table = format_comparison(runs)
    output.mkdir(parents=True, exist_ok=True)
    # The validation loss if all runs have one: it is on the same examples at each step.
    validated = all(run.curve('validation_loss')[0] for run in runs)
    metric = 'validation_loss' if validated else 'loss'
    curves = {run.name: run.curve(metric) for run in runs}
    label = f'{metric.replace("_", " ")} (nats per token)'
    plots.plot_curves(output / 'comparison.png', curves, label)
    files.write_text(output / 'comparison.md', table)
    return table


def read_runs(directory: pathlib.Path) -> list[Run]:
    """The finished runs in a directory, the one with the lowest held-out loss first.

    Raises:
        UserError: there is no finished run, a file of one is broken, or two runs have another base
            or template, or for the same task other held-out questions or another scoring.
    """
    paths = sorted(path.parent for path in directory.glob('*/results.json'))
    if not paths:
        raise UserError(f'{directory} holds no finished run: no directory in it has results.json.')
    runs = [_read_run(path) for path in paths]
    first: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        for what, value in run.setting.items():
            other, known = first.setdefault(what, (run, value))
            if value != known:
                raise _incomparable(directory, other, run, what)
    return sorted(runs, key=lambda run: _mean(run, 'loss_after'))


def _incomparable(directory: pathlib.Path, one: Run, other: Run, what: str) -> UserError:
    return UserError(
        f'The runs {one.name} and {other.name} in {directory} differ in their {what}: they cannot '
        'be compared.'
    )


def _without_sandbox(scoring: Mapping[str, Any]) -> dict[str, Any]:
    """What a machine offers to confine programs does not decide whether they are right."""
    return {key: value for key, value in scoring.items() if key != 'sandbox'}


def _read_run(path: pathlib.Path) -> Run:
    try:
        config = files.read_json(path / 'config.json', run_files.Config)
        results = run_files.read_results(path)
        return Run(
            path.name,
            config,
            results,
            run_files.read_metrics(path / run_files.METRICS),
            run_files.answer_rows(path / 'answers_before.jsonl', results),
            run_files.answer_rows(path / 'answers_after.jsonl', results),
        )
    except FileNotFoundError as error:
        raise UserError(f'{path} is no whole run: {error.filename} is missing.') from error


def format_comparison(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each run."""
    head = [
        *('run', 'trained parameters', 'held-out loss before', 'after'),
        *('right before (%)', 'after', 'seconds a step'),
    ]
    return markdown.table([head, *map(_row, runs)])


def _row(run: Run) -> list[str]:
    results, average = run.results, run.results['average']
    return [
        f'`{run.name}`',
        f'{results["parameters"]["trainable"]:,}',
        f'{_mean(run, "loss_before"):.3f}',
        f'{_mean(run, "loss_after"):.3f}',
        f'{100 * average["before"]:.1f}',
        f'{100 * average["after"]:.1f}',
        f'{results["train_time_s"] / results["steps"]:.2f}',
    ]


def _mean(run: Run, key: str) -> float:
    tasks = run.results['tasks'].values()
    return sum(task[key] for task in tasks) / len(tasks)

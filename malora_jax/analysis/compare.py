"""Finished runs side by side: a table of what they reached, and their curves."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax import files
from malora_jax.analysis import plots
from malora_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of its directory.
        results: what its results.json holds.
        records: of its metrics.jsonl.
    """

    name: str
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def setting(self) -> dict[str, Any]:
        """What runs must share to be comparable."""
        return {'tasks': list(self.results['tasks']), 'model': self.results['model']}

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """Steps and validation losses; training losses where nothing was validated."""
        name = 'validation_loss' if self.results['validation_curve'] else 'loss'
        points = [(record['step'], record[name]) for record in self.records if name in record]
        return [step for step, _ in points], [loss for _, loss in points]


def compare(directory: pathlib.Path, output: pathlib.Path) -> str:
    """Writes `comparison.md` and `comparison.png` about all finished runs in a directory.

    Args:
        directory: each run is a directory in it.
        output: where the two files go.

    Returns:
        The table, in Markdown.

    Raises:
        UserError: there is no finished run, or two runs have other tasks or another base.
    """
    runs = read_runs(directory)
    table = format_comparison(runs)
    output.mkdir(parents=True, exist_ok=True)
    measured = [bool(run.results['validation_curve']) for run in runs]
    label = 'validation loss' if all(measured) else 'loss'
    curves = {run.name: run.curve for run in runs}
    plots.plot_curves(output / 'comparison.png', curves, f'{label} (nats per token)')
    with files.replacing(output / 'comparison.md') as temporary:
        temporary.write_text(table + '\n', 'utf-8')
    return table


def read_runs(directory: pathlib.Path) -> list[Run]:
    """The finished runs in a directory, the one with the lowest held-out loss first.

    Raises:
        UserError: as `compare`.
    """
    paths = sorted(path.parent for path in directory.glob('*/results.json'))
    if not paths:
        raise UserError(f'{directory} holds no finished run: no directory in it has results.json.')
    runs = [
        Run(
            path.name,
            files.read_json(path / 'results.json'),
            files.read_json_lines(path / 'metrics.jsonl'),
        )
        for path in paths
    ]
    for run in runs[1:]:
        for what, value in run.setting.items():
            if value != runs[0].setting[what]:
                raise UserError(
                    f'The runs {runs[0].name} and {run.name} in {directory} have different {what}: '
                    'only runs on the same tasks and base can be compared.'
                )
    return sorted(runs, key=lambda run: _mean(run, 'loss_after'))


def format_comparison(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each run."""
    rows = [
        '| run | trained parameters | held-out loss before | after | right before (%) | after |'
        ' seconds a step |',
        '|---|---|---|---|---|---|---|',
    ]
    for run in runs:
        results, average = run.results, run.results['average']
        cells = (
            f'`{run.name}`',
            f'{results["parameters"]["trainable"]:,}',
            f'{_mean(run, "loss_before"):.3f}',
            f'{_mean(run, "loss_after"):.3f}',
            f'{100 * average["before"]:.1f}',
            f'{100 * average["after"]:.1f}',
            f'{results["train_time_s"] / results["steps"]:.2f}',
        )
        rows.append(f'| {" | ".join(cells)} |')
    return '\n'.join(rows)


def _mean(run: Run, key: str) -> float:
    tasks = run.results['tasks'].values()
    return sum(task[key] for task in tasks) / len(tasks)

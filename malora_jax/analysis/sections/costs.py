"""Section on the costs of runs: adapter parameters and wall-clock time."""

from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.adapters.base_structure import PARAMETER_KINDS
from malora_jax.analysis.page import ReportBlock, Section, Table, Text
from malora_jax.runs import LoadedRun


def costs_section(runs: Sequence[LoadedRun]) -> Section:
    """Return the section on the costs of runs.

    For each run, it shows the number of parameters in each part of the adapter (such as the
    router), and the seconds spent on each activity (such as training steps).
    """
    blocks: list[ReportBlock] = []
    for run in runs:
        if 'by_group' in run.parameters:
            blocks.append(_parameter_table(run.name, run.parameters))
        if run.seconds_by_activity:
            blocks.append(_time_table(run.name, run.seconds_by_activity))
    without = [run.name for run in runs if not run.seconds_by_activity]
    if without:
        verb = 'has' if len(without) == 1 else 'have'
        text = f'{", ".join(without)} {verb} no goodput.jsonl, so its time by activity is unknown.'
        blocks.append(Text(text))
    numbers = {
        r.name: {'parameters': r.parameters, 'seconds': dict(r.seconds_by_activity)} for r in runs
    }
    return Section('costs', 'Parameters and time', blocks, numbers)


def _parameter_table(name: str, parameters: Mapping[str, Any]) -> Table:
    by_group = parameters['by_group']
    total = sum(by_group.values())
    rows = [
        [
            PARAMETER_KINDS[part][1] if part in PARAMETER_KINDS else part,
            f'{count:,}',
            f'{100 * count / total:.1f}%',
        ]
        for part, count in by_group.items()
    ]
    caption = (
        f'{name}: parameters of the adapter by part. {parameters["trainable"]:,} are trainable, '
        f'{parameters["percent_of_base"]:.2f}% of the {parameters["base"]:,} of the base model'
    )
    frozen = parameters['frozen_in_adapter']
    caption += f'; {frozen:,} are frozen' if frozen else ''
    shares = [count / total for count in by_group.values()]
    return Table(caption, ['part', 'parameters', 'share'], rows, bars=shares)


def _time_table(name: str, seconds: Mapping[str, float]) -> Table:
    total = sum(seconds.values())
    parts = sorted(
        ((part, s) for part, s in seconds.items() if s >= 0.05), key=lambda each: -each[1]
    )
    rows = [[part, f'{s:,.1f}', f'{100 * s / total:.1f}%'] for part, s in parts]
    caption = (
        f'{name}: seconds by activity, summed over all starts, {total:,.0f} in total. step = '
        'training steps, evaluate = validation and scoring, lost = steps that were repeated after '
        'a restart, stopped = time between two starts'
    )
    return Table(caption, ['part', 'seconds', 'share'], rows, bars=[s / total for _, s in parts])

"""Section that opens a report: scores, what was learned, and what to look at, in short sentences.

Each sentence has its number and, where there is one, its interval or control. A difference whose
interval contains 0 is called not distinguishable. A row is a group of runs that differ only in
their seed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.analysis import cells
from malora_jax.analysis.conditions import count, held_out_questions, model_and_seeds
from malora_jax.analysis.figures import metric_curve
from malora_jax.analysis.page import BulletList, Fold, ReportBlock, Section, Text
from malora_jax.analysis.sections.scores import baseline_rows
from malora_jax.runs import LoadedRun, SeedGroup
from malora_jax.statistics import PairedDifference
from malora_jax.training.validation import VALIDATION_LOSS

# With more rows than this, the lists of what each of them scores and learned are collapsed.
_MAX_ROWS = 4
# A rise of the validation loss above its minimum is reported from this fraction of the minimum on.
_MIN_RISE = 0.01
# Routers hardly separate the tasks if training adds less than this fraction of the largest possible
# task information.
_MIN_INFORMATION = 0.05
# Routers use few experts if the number of effective experts is in this lowest part of its range.
_FEW_EXPERTS = 0.25
# Tasks with fewer questions may have the same answer to all of them by chance.
_MIN_ANSWERS = 10
_NOTHING = (
    'Nothing stands out among scores at or below the majority baseline, empty or identical '
    'answers, skipped steps, rising validation losses, and the use of experts.'
)
_NOT_MEASURED = 'The task information of routers and the load of single experts were not measured.'

# Numbers of the section on routing, as in `analysis.json`; None for runs without routers.
RoutingNumbers = Mapping[str, Any] | None


def summary_section(
    runs: Sequence[LoadedRun],
    groups: Sequence[SeedGroup],
    routing: Mapping[str, RoutingNumbers],
) -> Section:
    """Return the section that summarizes a report.

    Args:
        runs: Runs of the report.
        groups: The finished runs again, grouped into rows; the base model first.
        routing: Numbers of the section on routing, by name of the run. Runs whose routing was not
            measured are missing.
    """
    rows = [group for group in groups if not group.is_base]
    learned = [text for row in rows for text in _named(rows, row.label, _task_gains(row))]
    findings = [text for row in rows for text in _named(rows, row.label, _weak_tasks(row))]
    for run in runs:
        numbers = routing.get(run.name)
        problems = [
            *_training_problems(run),
            *_broken_answers(run),
            *_few_experts(run, numbers),
            *_idle_experts(numbers),
        ]
        if numbers and numbers['max_information'] > 0:
            separates, text = _task_separation(run, numbers)
            if separates:
                learned += _named(runs, run.name, [text])
            else:
                problems.append(text)
        findings += _named(runs, run.name, problems)
    many = len(rows) > _MAX_ROWS
    blocks: list[ReportBlock] = [Text(_conditions(runs))]
    if rows:
        scores = [text for row in rows for text in _named(rows, row.label, [_score(row)])]
        blocks.append(_list('Scores', scores, many))
    if len(rows) > 1:
        blocks.append(BulletList([*_comparisons(groups)], 'Differences between rows'))
    if learned:
        blocks.append(_list('What was learned', learned, many))
    notes = [_NOTHING] * (not findings) + [_NOT_MEASURED] * (not routing)
    blocks.append(BulletList([*findings, *notes], 'What to look at'))
    return Section('summary', 'Summary', blocks, {'learned': learned, 'findings': findings})


def _named(several: Sequence[Any], name: str, sentences: Iterable[str]) -> list[str]:
    """Return sentences as one item that starts with a name, if the report has several names."""
    sentences = [*sentences]
    if len(several) == 1 or not sentences:
        return sentences
    return [f'{name}: {" ".join(sentences)}']


def _list(title: str, items: Sequence[str], is_collapsed: bool) -> ReportBlock:
    return Fold(title, [BulletList(items)]) if is_collapsed else BulletList(items, title)


def _conditions(runs: Sequence[LoadedRun]) -> str:
    finished = [run for run in runs if run.is_finished]
    methods = ', '.join(dict.fromkeys(run.method for run in runs))
    parts = [f'{methods} on {model_and_seeds(runs)}.']
    if finished:
        parts.append(
            f'Scores are in %, on {held_out_questions(finished)}; brackets show 95% intervals over '
            'questions. All tasks have the same weight.'
        )
    if len(finished) < len(runs):
        names = ', '.join(run.name for run in runs if not run.is_finished)
        parts.append(f'Not finished, and therefore without scores: {names}.')
    return ' '.join(parts)


def _own_tasks(row: SeedGroup) -> tuple[SeedGroup, SeedGroup]:
    """Return a row, and the base model on the same questions, both with the row's own tasks."""
    own = dataclasses.replace(row, tasks=[task for task in row.tasks if task in row.scores])
    return own, dataclasses.replace(own, is_base=True)


def _score(row: SeedGroup) -> str:
    own, base = _own_tasks(row)
    change = own.average_difference(base)
    loss_change = own.average_difference(base, 'loss')
    assert change and loss_change  # Both rows have the same questions.
    parts = [
        f'{cells.score(base.average_score())} before training, {cells.score(own.average_score())} '
        f'after: {cells.points(change)} points{_doubt(change)}.'
    ]
    constants = _majority_baselines(own)
    if constants:
        parts.append(f'The majority baseline is {100 * np.mean([*constants.values()]):.1f}.')
    parts.append(
        f'The answer loss goes from {cells.loss(base.average_loss())} to '
        f'{cells.loss(own.average_loss())} nats per token: '
        f'{cells.nats(loss_change)}{_doubt(loss_change)}.'
    )
    return ' '.join(parts)


def _doubt(change: PairedDifference) -> str:
    return '' if change.is_significant else ', not distinguishable from 0'


def _majority_baselines(row: SeedGroup) -> dict[str, float]:
    """Return the score of the best constant answer by task; empty if a task's is unknown."""
    known = {
        task: result['best_constant']
        for run in row.runs
        for task, result in run.results['tasks'].items()
        if 'best_constant' in result
    }
    return {task: known[task] for task in row.tasks} if known.keys() >= {*row.tasks} else {}


def _comparisons(groups: Sequence[SeedGroup]) -> Iterator[str]:
    """Yield sentences about the differences of all trained rows from the baseline rows."""
    for baseline in baseline_rows(groups):
        others = [group for group in groups if not group.is_base and group is not baseline]
        for metric, show, name in (
            ('score', cells.points, 'average score (points)'),
            ('loss', cells.nats, 'answer loss (nats per token, lower is better)'),
        ):
            found = {other.label: other.average_difference(baseline, metric) for other in others}
            known = {label: each for label, each in found.items() if each}
            higher, lower, same = _by_direction(known, show)
            parts = [('higher', higher), ('lower', lower), ('not distinguishable', same)]
            missing = ', '.join(label for label, each in found.items() if each is None)
            parts.append(('not comparable, because of other questions or tasks', missing))
            described = '; '.join(f'{how}: {rows}' for how, rows in parts if rows)
            yield f'Compared with {baseline.label}, {name}: {described}.'


def _task_gains(row: SeedGroup) -> Iterator[str]:
    """Yield sentences on the tasks whose scores rise, fall, or cannot be told apart."""
    own, base = _own_tasks(row)
    higher, lower, same = _by_direction(own.task_differences(base), cells.points)
    yield f'Clear gains (points): {higher}.' if higher else 'No task gains clearly.'
    if lower:
        yield f'Clear losses (points): {lower}.'
    if same:
        yield f'Not distinguishable from before training: {same}.'


def _by_direction(
    differences: Mapping[str, PairedDifference], show: Callable[[PairedDifference], str]
) -> tuple[str, str, str]:
    """Return the names with clearly positive, clearly negative, and indistinct differences.

    Args:
        differences: Differences by name.
        show: Function that formats a difference.
    """
    ordered = sorted(differences.items(), key=lambda each: -abs(each[1].mean))
    signs = [np.sign(each.mean) if each.is_significant else 0 for _, each in ordered]
    higher, lower, same = (
        ', '.join(
            f'{name} {show(each)}'
            for (name, each), sign in zip(ordered, signs, strict=True)
            if sign == wanted
        )
        for wanted in (1, -1, 0)
    )
    return higher, lower, same


def _weak_tasks(row: SeedGroup) -> Iterator[str]:
    """Yield sentences on tasks whose scores do not exceed the majority baseline."""
    own, _ = _own_tasks(row)
    below: list[str] = []
    same: list[str] = []
    for task, constant in _majority_baselines(own).items():
        score = own.score(task)
        assert score  # All tasks of `own` are scored.
        if score[1].low <= constant:
            text = f'{task} {cells.score(score)} (baseline {100 * constant:.1f})'
            (below if score[1].high < constant else same).append(text)
    if below:
        yield f'Below the majority baseline: {", ".join(below)}.'
    if same:
        yield f'Not distinguishable from the majority baseline: {", ".join(same)}.'


def _training_problems(run: LoadedRun) -> Iterator[str]:
    """Yield sentences on skipped steps and on validation losses that rose."""
    skipped = sum(record.get('skipped', 0) for record in run.records)
    if skipped:
        yield (
            f'{skipped:g} of {count(len(run.records), "step")} had a loss or gradient that is not '
            'finite, and were skipped.'
        )
    names = dict.fromkeys(key for record in run.records for key in record)
    risen = []
    for name in (name for name in names if name.startswith(VALIDATION_LOSS)):
        steps, losses = metric_curve(run.records, name)
        lowest = losses.argmin()
        if losses[-1] > (1 + _MIN_RISE) * losses[lowest]:
            risen.append(
                f'{name.partition("/")[2] or "mean over tasks"} from {losses[lowest]:.3f} at step '
                f'{steps[lowest]:.0f} to {losses[-1]:.3f} at step {steps[-1]:.0f}'
            )
    if risen:
        yield f'The validation loss rose after its minimum: {", ".join(risen)}.'


def _broken_answers(run: LoadedRun) -> Iterator[str]:
    """Yield sentences on tasks whose answers after training are empty or all the same."""
    empty, same = [], []
    for task in run.results['tasks'] if run.is_finished else ():
        rows = [row for row in run.answers_after if row['task'] == task and 'answer' in row]
        num_empty = sum(not row['answer'].strip() for row in rows)
        if num_empty:
            empty.append(f'{task} ({num_empty} of {len(rows)})')
        expected = {row.get('expected') for row in rows}
        if len(rows) >= _MIN_ANSWERS and len({row['answer'] for row in rows}) == 1 < len(expected):
            same.append(f'{task} ({len(rows)} questions with {len(expected)} different answers)')
    if empty:
        yield f'Empty answers after training: {", ".join(empty)}.'
    if same:
        yield f'The same answer to all questions after training: {", ".join(same)}.'


def _few_experts(run: LoadedRun, numbers: RoutingNumbers) -> Iterator[str]:
    """Yield a sentence if the effective experts, mean over routers, are few."""
    start = None
    if numbers:
        experts, fewest = numbers['experts'], numbers['min_effective_experts']
        effective = numbers['steps'][run.report_step]['effective_experts']
        start = numbers['steps'].get(0)
    elif run.is_finished and 'effective_experts' in run.results.get('routing', {}):
        adapter = run.run_config.adapter
        experts, fewest = adapter.num_experts, adapter.router.min_experts
        effective = run.results['routing']['effective_experts']
    else:
        return
    if effective < fewest + _FEW_EXPERTS * (experts - fewest):
        before = f', {start["effective_experts"]:.2f} before training' if start else ''
        yield (
            f'The routers use few experts: {effective:.2f} effective experts, mean over routers '
            f'({experts} if balanced, at least {fewest}{before}).'
        )


def _idle_experts(numbers: RoutingNumbers) -> Iterator[str]:
    """Yield a sentence if there are experts with hardly any load."""
    if not numbers:
        return
    idle = {
        (linear, layer): num_idle
        for linear, by_layer in numbers['idle_experts'].items()
        for layer, num_idle in enumerate(by_layer)
    }
    if any(idle.values()):
        linear, layer = most = max(idle, key=idle.__getitem__)
        yield (
            f'{sum(idle.values())} of {numbers["experts"] * len(idle):,} experts get less than a '
            f'tenth of a balanced load, up to {idle[most]} of {numbers["experts"]} in one router '
            f'({linear} of layer {layer}). If this hurts a task, raise adapter.balance_weight.'
        )


def _task_separation(run: LoadedRun, numbers: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether training made the routers separate the tasks, and a sentence about it."""
    information = {step: means['task_information'] for step, means in numbers['steps'].items()}
    end, start = information[run.report_step], information.get(0)
    chance, max_chance = numbers['chance_information'], numbers['max_chance_information']
    text = (
        f'Task information of the routers is {end:.3f} bits of at most '
        f'{numbers["max_information"]:.2f}; '
        f'{"unknown" if start is None else f"{start:.3f}"} before training, and {chance:.3f} (at '
        f'most {max_chance:.3f}) with tasks assigned to the questions at random. '
    )
    if end <= max_chance:
        return False, f'{text}It is not distinguishable from chance.'
    is_start = start is not None and start > chance
    gain = end - max(chance, start or 0.0)
    separates = gain >= _MIN_INFORMATION * numbers['max_information']
    return separates, (
        f'{text}Compared with {"before training" if is_start else "chance"}, that is {gain:+.3f} '
        f'bits: the routers {"" if separates else "hardly "}separate the tasks.'
    )

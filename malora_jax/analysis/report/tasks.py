"""The parts of the report that are about tasks: losses, scores, and what each gains or loses."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax.analysis import task_plots
from malora_jax.analysis.figures import points
from malora_jax.analysis.report.page import Block, Picture, Section, Table, Text
from malora_jax.analysis.report.runs import Subject
from malora_jax.statistics import Difference, paired_bootstrap


def tasks_section(subjects: Sequence[Subject], output: pathlib.Path) -> Section:
    """Losses over training, and scores before and after."""
    path = output / 'tasks.png'
    task_plots.plot_tasks(path, {each.name: each.records for each in subjects})
    caption = (
        'Answer loss of each task over the steps, a moving average of the training loss (dashed: '
        'the validation loss, where it was measured); lower is better, and the lower of two '
        'curves in one panel learnt that task better.'
    )
    blocks: list[Block] = [Picture(path, caption)]
    numbers: dict[str, Any] = {}
    for each in subjects:
        found = {task: _of_task(each, task) for task in _trained(each)}
        numbers[each.name] = found
        blocks.append(_table(each, found))
    return Section('tasks', 'Tasks', blocks, numbers)


def seesaw_section(subjects: Sequence[Subject], output: pathlib.Path) -> Section:
    """Each task's change against training on it alone, where there are such runs."""
    title = 'The seesaw: training together against training alone'
    changes: dict[str, dict[str, Difference]] = {}
    against: dict[tuple[str, str], str] = {}
    for subject in subjects:
        if len(subject.tasks) < 2 or subject.results is None:
            continue
        for task in subject.results['tasks']:
            other = _alone(subjects, subject, task)
            if other is not None:
                scores, baseline = ({task: _scores(run, task)} for run in (subject, other))
                changes.setdefault(subject.name, {})[task] = paired_bootstrap(scores, baseline)
                against[subject.name, task] = other.name
    if not changes:
        text = (
            'Nothing to compare: give, as further --workdir, finished runs that were trained on '
            'one of the tasks alone, with the same method or LoRA, and scored on the same '
            'held-out questions (tasks that are made have other questions with another seed).'
        )
        return Section('seesaw', title, [Text(text)], {})
    path = output / 'seesaw.png'
    bars = {
        name: {t: (100 * c.mean, *(100 * end for end in c.interval)) for t, c in by_task.items()}
        for name, by_task in changes.items()
    }
    task_plots.plot_seesaw(path, bars)
    every = [change for by_task in changes.values() for change in by_task.values()]
    clear = [change.mean > 0 for change in every if change.distinguishable]
    caption = (
        'Change of each score against the run trained on that task alone, with its 95% interval; '
        'right of the line at 0 the task gains from the others, left of it it pays for them. '
        f'{sum(clear)} gain and {len(clear) - sum(clear)} lose more than the choice of questions '
        'explains.'
    )
    rows = [
        [
            f'{task} ({name} against {against[name, task]})',
            f'{100 * change.mean:+.1f}',
            f'{100 * change.interval.low:+.1f} to {100 * change.interval.high:+.1f}',
            ('gains' if change.mean > 0 else 'loses') if change.distinguishable else 'unclear',
        ]
        for name, by_task in changes.items()
        for task, change in by_task.items()
    ]
    table = Table(
        'Points of the score; intervals by a paired bootstrap over the held-out questions',
        ['task', 'change', '95% interval', ''],
        rows,
    )
    numbers = {
        name: {
            task: {'against': against[name, task], **dataclasses.asdict(change)}
            for task, change in by_task.items()
        }
        for name, by_task in changes.items()
    }
    return Section('seesaw', title, [Picture(path, caption), table], numbers)


def _trained(subject: Subject) -> list[str]:
    found = {key for record in subject.records for key in record}
    return [task for task in subject.tasks if f'loss/{task}' in found]


def _of_task(subject: Subject, task: str) -> dict[str, Any]:
    """Losses are means over the first and the last tenth of the steps that had the task."""
    losses = points(subject.records, f'loss/{task}')[1]
    tenth = max(1, len(losses) // 10)
    scored = (subject.results or {}).get('tasks', {}).get(task)
    return {
        'first_loss': float(losses[:tenth].mean()),
        'last_loss': float(losses[-tenth:].mean()),
        'examples': subject.records[-1][f'examples/{task}'],
        'before': scored['before'] if scored else None,
        'after': scored['after'] if scored else None,
        'interval': scored['after_interval'] if scored else None,
    }


def _table(subject: Subject, found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [
            task,
            f'{one["examples"]:,}',
            f'{one["first_loss"]:.2f}',
            f'{one["last_loss"]:.2f}',
            *_scores_of(one),
        ]
        for task, one in found.items()
    ]
    caption = (
        f'{subject.name}: examples drawn until step {subject.records[-1]["step"]}, training loss '
        'in the first and the last tenth of the steps, and scores in % before and after with the '
        '95% interval'
    )
    return Table(
        caption, ['task', 'drawn', 'loss, first', 'last', 'score before', 'after', '95%'], rows
    )


def _scores_of(found: Mapping[str, Any]) -> list[str]:
    """Before, after, and its interval, in percent."""
    if found['after'] is None:
        return ['–'] * 3
    low, high = (100 * end for end in found['interval'])
    before, after = (f'{100 * found[when]:.1f}' for when in ('before', 'after'))
    return [before, after, f'{low:.0f}–{high:.0f}']


def _alone(subjects: Sequence[Subject], subject: Subject, task: str) -> Subject | None:
    """The run of a task alone that a run is held against: its own method's, else LoRA's."""
    singles = [
        other
        for other in subjects
        if other.tasks == [task]
        and other.results is not None
        and _questions(other, task) == _questions(subject, task)
    ]
    near = [
        other
        for method in (subject.run.method, 'lora')
        for other in singles
        if other.run.method == method
    ]
    return near[0] if near else None


def _questions(subject: Subject, task: str) -> list[str]:
    return [answer['question'] for answer in subject.answers if answer['task'] == task]


def _scores(subject: Subject, task: str) -> np.ndarray:
    return np.array([answer['score'] for answer in subject.answers if answer['task'] == task])

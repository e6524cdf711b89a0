"""Section with example answers: the first right and wrong answers to each task's questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax.analysis.page import Fold, ReportBlock, Section, Table, Text
from malora_jax.runs import LoadedRun, SeedGroup

# Number of right answers, and of wrong ones, that are shown of each task.
_EXAMPLES = 2
# Longer texts are cut after this number of characters, and end with the mark.
_MAX_CHARACTERS, _MARK = 240, ' […]'
# Columns with texts.
_TEXTS = ('question', 'expected', 'before', 'after')
_INTRODUCTION = (
    f'The first {_EXAMPLES} right and the first {_EXAMPLES} wrong answers of each task after '
    'training, in the order of the held-out questions. They show what answers look like, not how '
    f'many are right. Texts of more than {_MAX_CHARACTERS} characters are shortened ({_MARK[1:]}).'
)


def answers_section(groups: Sequence[SeedGroup]) -> Iterator[Section]:
    """Yield the section with example answers; nothing if the runs have no texts of answers.

    For each task, a row shows answers of the first of its runs that is scored on the task.

    Args:
        groups: Rows of the report.
    """
    numbers = {
        group.name: {task: rows for task in group.tasks if (rows := _examples(group.runs, task))}
        for group in groups
        if not group.is_base
    }
    tables = {
        group.label: [_table(task, rows) for task, rows in numbers[group.name].items()]
        for group in groups
        if numbers.get(group.name)
    }
    if not tables:
        return
    blocks: list[ReportBlock] = [Text(_INTRODUCTION)]
    if len(tables) == 1:
        blocks += next(iter(tables.values()))
    else:
        blocks += [Fold(f'Answers of {label}', each) for label, each in tables.items()]
    yield Section('answers', 'Example answers', blocks, numbers)


def _examples(runs: Sequence[LoadedRun], task: str) -> list[dict[str, Any]]:
    run = next((run for run in runs if task in run.results['tasks']), None)
    if run is None:
        return []
    pairs = [
        pair
        for pair in zip(run.answers_before, run.answers_after, strict=True)
        if all(row['task'] == task and {'expected', 'answer'} <= row.keys() for row in pair)
    ]
    right = [pair for pair in pairs if pair[1]['score'] == 1]
    wrong = [pair for pair in pairs if pair[1]['score'] < 1]
    return [
        {
            'question': _shortened(after['question']),
            'expected': _shortened(after['expected']),
            'before': _shortened(before['answer']),
            'after': _shortened(after['answer']),
            'score': after['score'],
        }
        for before, after in (*right[:_EXAMPLES], *wrong[:_EXAMPLES])
    ]


def _shortened(text: str) -> str:
    """Return a text on one line, and with a mark at its end if it is cut."""
    line = ' '.join(text.split())
    return line if len(line) <= _MAX_CHARACTERS else line[:_MAX_CHARACTERS].rstrip() + _MARK


def _table(task: str, examples: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for example in examples:
        *texts, answer = (example[key] or '(empty)' for key in _TEXTS)
        rows.append([*texts, f'{_verdict(example["score"])}: {answer}'])
    return Table(task, _TEXTS, rows, text_columns=range(1, len(_TEXTS)))


def _verdict(score: float) -> str:
    """Return 'right', 'wrong', or a partial score in percent."""
    return {0.0: 'wrong', 1.0: 'right'}.get(score, f'{100 * score:.0f}%')

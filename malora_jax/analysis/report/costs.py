"""The parts of the report that are about what runs are and cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from malora_jax.adapters.structures import KINDS
from malora_jax.analysis.report.page import Block, Section, Table, Text
from malora_jax.analysis.report.runs import Subject
from malora_jax.models import Decoder
from malora_jax.training.plan import parameter_counts


def overview_section(subjects: Sequence[Subject]) -> Section:
    """Return the section on the runs, with the counts of metrics.jsonl."""
    numbers = {each.name: _overview(each) for each in subjects}
    names = {
        'method': 'method',
        'tasks': 'tasks',
        'seed': 'seed',
        'steps': 'steps made',
        'analysed_step': 'checkpoint shown',
        'tokens': 'tokens',
        'examples': 'examples drawn',
        'epochs': 'epochs',
        'trained': 'trained parameters',
        'before': 'score before, %',
        'after': 'score after, %',
    }
    rows = [
        [label, *(_cell(found[key]) for found in numbers.values())] for key, label in names.items()
    ]
    base = subjects[0].run.model.name
    head = ['', *numbers]
    return Section('runs', 'Runs', [Table(f'On {base}', head, rows)], numbers)


def costs_section(subjects: Sequence[Subject]) -> Section:
    """Parameters by part, and time by part."""
    blocks: list[Block] = []
    numbers = {}
    for each in subjects:
        parameters = _parameters(each)
        blocks.append(_parameter_table(each.name, parameters))
        if each.spent:
            blocks.append(_time_table(each.name, each.spent))
        else:
            blocks.append(
                Text(f'{each.name} has no goodput.jsonl, so where its time went is not known.')
            )
        numbers[each.name] = {'parameters': parameters, 'seconds': dict(each.spent)}
    return Section('costs', 'Parameters and time', blocks, numbers)


def _overview(subject: Subject) -> dict[str, Any]:
    last = subject.records[-1]
    average = (subject.results or {}).get('average', {})
    drawn = [value for key, value in last.items() if key.startswith('examples/')]
    return {
        'method': subject.run.method,
        'tasks': len(subject.tasks),
        'seed': subject.run.seed,
        'steps': last['step'],
        'analysed_step': subject.step,
        'tokens': last['total_tokens'],
        'examples': sum(drawn),
        'epochs': last['epoch'],
        'trained': _parameters(subject)['trainable'],
        'before': 100 * average['before'] if average else None,
        'after': 100 * average['after'] if average else None,
    }


def _cell(value: Any) -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.1f}'
    return f'{value:,}' if isinstance(value, int) else str(value)


def _parameters(subject: Subject) -> dict[str, Any]:
    if subject.results is not None:
        return subject.results['parameters']
    return parameter_counts(Decoder(subject.run.model, subject.run.adapter))


def _parameter_table(name: str, found: Mapping[str, Any]) -> Table:
    by_group = found['by_group']
    whole = sum(by_group.values())
    rows = [
        [KINDS[part][1] if part in KINDS else part, f'{count:,}', f'{100 * count / whole:.1f}%']
        for part, count in by_group.items()
    ]
    caption = (
        f'{name}: parameters of the adapter by part. {found["trainable"]:,} train, '
        f'{found["percent_of_base"]:.2f}% of the {found["base"]:,} of the base'
    )
    frozen = found['frozen_in_adapter']
    caption += f'; {frozen:,} are frozen' if frozen else ''
    shares = [count / whole for count in by_group.values()]
    return Table(caption, ['part', 'parameters', 'share'], rows, bars=shares)


def _time_table(name: str, spent: Mapping[str, float]) -> Table:
    total = sum(spent.values())
    parts = sorted(((part, s) for part, s in spent.items() if s >= 0.05), key=lambda each: -each[1])
    rows = [[part, f'{s:,.1f}', f'{100 * s / total:.1f}%'] for part, s in parts]
    caption = (
        f'{name}: seconds by what they went into, over all its starts, {total:,.0f} in all. step = '
        'training steps, evaluate = validation and scoring, lost = steps that were made again, '
        'stopped = between two starts'
    )
    return Table(caption, ['part', 'seconds', 'share'], rows, bars=[s / total for _, s in parts])

"""Routing, similarity of experts and gradients in the fair comparison.

Gradients are among the recorded metrics. Routing and similarity are from reports, which read
checkpoints that are too large to commit. This command keeps the few numbers of a report that the
page on the fair comparison shows, in `docs/results/fair_why`:

    python -m experiments.analyze --workdir=runs/fair_methods/malora-seed0 --questions=16
    python -m docs.fair_why runs/fair_methods/malora-seed0/analysis/analysis.json
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from configs.sweeps import fair_rates
from docs import tables_fair
from docs.records import RESULTS
from malora_jax import files, markdown
from malora_jax.analysis.expert_similarity import SIDES
from malora_jax.runs import LoadedRun

DIRECTORY = 'fair_why'
_DIGITS = 4


def store(analysis: pathlib.Path) -> pathlib.Path:
    """Keep the numbers of the report on one run, and return the file they are in.

    Args:
        analysis: `analysis.json` of a report on a single run that has a router.

    Raises:
        ValueError: The report has no section on routing, or several.
    """
    sections = json.loads(analysis.read_text('utf-8'))
    names = [name for name in sections if name.startswith('routing-') and sections[name]]
    if len(names) != 1:
        raise ValueError(f'{analysis} reports on {len(names)} runs with a router, not on one.')
    routing = sections[names[0]]
    (run,) = sections['runs']
    (similarity,) = sections['similarity']
    numbers = {
        'questions': routing['questions'],
        'experts': routing['experts'],
        'steps': _rounded(routing['steps']),
        'chance_information': round(routing['max_chance_information'], _DIGITS),
        'max_information': round(routing['max_information'], _DIGITS),
        'idle_experts': int(np.sum([*routing['idle_experts'].values()])),
        'routers': int(np.size([*routing['idle_experts'].values()])),
        'similarity': {
            side: {key: _mean(values) for key, values in similarity[side].items()}
            for side in SIDES
            if side in similarity
        },
    }
    path = RESULTS / DIRECTORY / f'{run}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, numbers)
    return path


def _rounded(steps: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        step: {name: round(value, _DIGITS) for name, value in means.items()}
        for step, means in steps.items()
    }


def _mean(values: Mapping[str, Any] | None) -> float | None:
    """Return the mean over layers and linears, of the ones that have a similarity."""
    if values is None:
        return None
    known = [value for layers in values.values() for value in layers if value is not None]
    return round(float(np.mean(known)), _DIGITS) if known else None


def load() -> dict[str, dict[str, Any]]:
    """Return the numbers of the first seed of each row, by row."""
    return {
        path.stem.rpartition('-seed')[0]: json.loads(path.read_text('utf-8'))
        for path in sorted((RESULTS / DIRECTORY).glob('*.json'))
    }


def _start_and_end(numbers: Mapping[str, Any]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the measures before the first and after the last step."""
    steps = sorted(numbers['steps'], key=int)
    return numbers['steps'][steps[0]], numbers['steps'][steps[-1]]


def routing_table() -> str:
    """Return the table of effective experts, idle experts and task information."""
    head = ('row', 'effective experts, start', 'end', 'idle experts', 'task information, bits')
    rows = [(*head, 'largest by chance', 'maximum')]
    for row, found in load().items():
        start, end = _start_and_end(found)
        share = found['idle_experts'] / (found['routers'] * found['experts'])
        rows.append(
            (
                f'`{row}`',
                f'{start["effective_experts"]:.2f}',
                f'{end["effective_experts"]:.2f} of {found["experts"]}',
                f'{100 * share:.1f}%',
                f'{start["task_information"]:.3f} → {end["task_information"]:.3f}',
                f'{found["chance_information"]:.3f}',
                f'{found["max_information"]:.2f}',
            )
        )
    return markdown.table(rows)


def gates_table() -> str:
    """Return the table of the mean sums of gates, of the runs whose report has them."""
    rows = [('row', 'sum of the gates, start', 'end')]
    for row, sums in gate_sums().items():
        rows.append((f'`{row}`', f'{sums["start"]:.2f}', f'{sums["end"]:.2f}'))
    return markdown.table(rows)


def gate_sums() -> dict[str, dict[str, float]]:
    """Return the mean sum of the gates at the `start` and the `end`, by row.

    Runs whose report was made by a version without these sums are left out.
    """
    found = {}
    for row, numbers in load().items():
        start, end = _start_and_end(numbers)
        if 'gate_sum' in end:
            found[row] = {'start': start['gate_sum'], 'end': end['gate_sum']}
    return found


def similarity_table() -> str:
    """Return the table of the similarity of A and of B, next to its controls."""
    rows = [('row', 'A', 'A at the start', 'A independent', 'B', 'B independent')]
    for row, found in load().items():
        a, b = (found['similarity'].get(side, {}) for side in SIDES)
        numbers = (a.get('trained'), a.get('start'), a.get('independent'))
        numbers += (b.get('trained'), b.get('independent'))
        texts = ['–' if number is None else f'{number:.3f}' for number in numbers]
        rows.append((f'`{row}`', *texts))
    return markdown.table(rows)


def gradients_table() -> str:
    """Return the table of gradient norms by parameter, in the first and in the last steps."""
    known = tables_fair.groups('fair_methods')
    if not known:
        return tables_fair.NO_RUNS
    prefix = 'gradient_norm/'
    names = sorted(
        {
            key.removeprefix(prefix)
            for group in known.values()
            for key in group.runs[0].records[0]
            if key.startswith(prefix)
        }
    )
    rows = [['row', *names]]
    for row in fair_rates.METHODS:
        if row in known:
            found = known[row].runs[0].records
            rows.append([f'`{row}`', *(_norms(found, prefix + name) for name in names)])
    return markdown.table(rows)


def _norms(records: Sequence[Mapping[str, float]], name: str) -> str:
    """Return the median norms in the first and in the last tenth of the steps."""
    norms = [record[name] for record in records if name in record]
    tenth = len(norms) // 10
    ends = (norms[:tenth], norms[-tenth:])
    return ' → '.join(f'{statistics.median(end):.2g}' for end in ends) if norms else '–'


def clipped_steps() -> dict[str, float]:
    """Return the percentage of the steps of the first seed whose gradient is clipped, by method."""
    known = tables_fair.groups('fair_methods')
    return {
        method: _clipped(known[method].runs[0]) for method in fair_rates.METHODS if method in known
    }


def _clipped(run: LoadedRun) -> float:
    limit = run.raw_config['optimizer']['clip_norm']
    return 100 * statistics.fmean(record['gradient_norm'] > limit for record in run.records)


PARTS: dict[str, Callable[[], str]] = {
    'fair routing': routing_table,
    'fair gates': gates_table,
    'fair similarity': similarity_table,
    'fair gradients': gradients_table,
}
VALUES: dict[str, Callable[[], Mapping[str, Any]]] = {
    'gates': gate_sums,
    'clipped': clipped_steps,
}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Keep the numbers of a report on one run.')
    parser.add_argument('analysis', type=pathlib.Path, help='analysis.json of the report.')
    print(store(parser.parse_args().analysis))

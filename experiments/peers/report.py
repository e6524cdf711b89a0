"""Report on the measurements, as JSON and as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.peers.batches import PeerBatch
from experiments.peers.systems import PAIRS, TITLES
from malora_jax.markdown import table

Seconds = Mapping[str, Sequence[float]]


def summarize_kind(
    kind: str, seconds: Seconds, batches: Sequence[PeerBatch], pairs: Sequence[str]
) -> dict:
    """Return medians and quartiles of the measurements for one kind of batches.

    Args:
        kind: Name of the kind in `benchmark.BATCH_KINDS`.
        seconds: Seconds of each step, by system.
        batches: Batch of each step.
        pairs: Names of the pairs to compare.

    Returns:
        A dict with five entries:
            tokens, examples: Mean number of tokens and of examples per step.
            positions: Mean number of positions per step, including padding; one number for the
                `packed` batches, and one for the `padded` batches.
            systems: For each system, the quartiles of `tokens_per_second`, and a list of the
                seconds of each step (`step_s`).
            pairs: For each pair, the `ratio` of our median throughput to the peer's, and the
                quartiles of the ratio in single steps (`by_step`).
    """
    tokens = np.array([step.tokens for step in batches])
    rates = {name: tokens / np.array(each) for name, each in seconds.items()}
    padded = [batch.padded['input_ids'] for batch in batches]
    return {
        'tokens': float(tokens.mean()),
        'examples': float(np.mean([len(ids) for ids in padded])),
        'positions': {
            'packed': float(np.mean([step.packed['inputs'].size for step in batches])),
            'padded': float(np.mean([ids.size for ids in padded])),
        },
        'systems': {
            name: {'tokens_per_second': _quartiles(rates[name]), 'step_s': list(each)}
            for name, each in seconds.items()
        },
        'pairs': {name: _ratio(name, rates) for name in pairs},
    }


def tables(report: Mapping[str, Any]) -> str:
    """Return the report as tables in Markdown."""
    parts = []
    if report['differences']:
        header = ['rows', 'ours and peer', 'losses', 'gradients, ‖g − g′‖ / ‖g‖', 'worst leaf']
        header.append('excluded: a token was routed to another expert')
        parts += ['Largest differences:', table([header, *_differences(report)])]
    header = ['rows', 'system', 'tokens/s', 'quartiles', 's/step']
    parts.append(table([header, *_systems(report)]))
    header = ['rows', 'ours / peer', 'ratio', 'quartiles by step']
    parts.append(table([header, *_pairs(report)]))
    return '\n\n'.join(parts)


def _ratio(name: str, rates: Mapping[str, np.ndarray]) -> dict[str, Any]:
    pair = PAIRS[name]
    ours, peer = rates[pair.ours], rates[pair.peer]
    return {
        'ratio': float(np.median(ours) / np.median(peer)),
        'by_step': _quartiles(ours / peer),
    }


def _quartiles(values: np.ndarray) -> dict[str, float]:
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return {'lower': float(lower), 'median': float(median), 'upper': float(upper)}


def _differences(report: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            *(kind, _title(name), f'{found["loss"]:.1e}', f'{found["gradient"]:.1e}'),
            *(found['leaf'], '; '.join(found['choices']) or '–'),
        ]
        for kind, by_pair in report['differences'].items()
        for name, found in by_pair.items()
    ]


def _systems(report: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for kind, found in report['rows'].items():
        for name, measured in found['systems'].items():
            rate = measured['tokens_per_second']
            quartiles, step = _format_quartiles(rate, '.1f'), float(np.median(measured['step_s']))
            lines.append([kind, TITLES[name], f'{rate["median"]:.1f}', quartiles, f'{step:.2f}'])
    return lines


def _pairs(report: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for kind, found in report['rows'].items():
        for name, measured in found['pairs'].items():
            quartiles = _format_quartiles(measured['by_step'], '.2f')
            lines.append([kind, _title(name), f'{measured["ratio"]:.2f}', quartiles])
    return lines


def _title(name: str) -> str:
    pair = PAIRS[name]
    return f'{TITLES[pair.ours]} / {TITLES[pair.peer]}'


def _format_quartiles(quartiles: Mapping[str, float], form: str) -> str:
    return f'{quartiles["lower"]:{form}} to {quartiles["upper"]:{form}}'

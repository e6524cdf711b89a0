"""Statistics of a benchmark's measured times, and their table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax import markdown
from malora_jax.benchmark.subjects import BASE, PARTS, Subject
from malora_jax.benchmark.timing import STEADY, Times, is_steady

_REFERENCE = 'lora'
# The parts of a step in Table 10 of the paper.
_SPLIT = ('forward_s', 'backward_s', 'optimizer_s')


def summarize(
    subjects: Sequence[Subject], times: Times, real_tokens: float, positions: int
) -> dict[str, dict[str, Any]]:
    """Return the statistics of each subject: times, ratios, throughput, FLOPs and memory.

    The time of the backward pass is the time of the gradient minus that of the forward pass. The
    time of the optimizer is the time of the whole step minus that of the gradient. Both are medians
    of the differences in each round. Ratios are medians of the ratios in each round.

    Args:
        subjects: Subjects that were timed.
        times: Seconds of each round, by subject and part.
        real_tokens: Mean number of tokens per batch that are not padding, for the throughput.
        positions: Number of positions per batch including padding, for the FLOPs per second.

    Returns:
        Statistics by name of the subject; times are in seconds (`_s`), memory in bytes (`_bytes`).
    """
    found = {}
    for subject in subjects:
        seconds = times[subject.name]['step']
        low, middle, high = np.percentile(seconds, (25, 50, 75))
        parts = {part: float(np.nanmedian(of_part)) for part, of_part in _split(times, subject)}
        found[subject.name] = {
            'step_s': middle,
            'step_quartiles_s': [low, high],
            'rounds': len(seconds),
            'steady': is_steady(seconds),
            **parts,
            'tokens_per_s': real_tokens / middle,
            'ratio_to_base': _ratio(times, subject.name, BASE),
            'ratio_to_lora': _ratio(times, subject.name, _REFERENCE),
            'flops_per_token': subject.flops_per_token,
            'flops_per_s': subject.flops_per_token * positions / middle,
            'trained_parameters': subject.trained_parameters,
            'temporary_bytes': subject.temporary_bytes,
            'resident_bytes': subject.resident_bytes,
            'compile_s': subject.compile_s,
            'first_step_s': subject.compile_s + subject.first_step_s,
        }
    return found


def format_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of the statistics.

    Args:
        methods: Result of `summarize`.
    """
    head = [
        *('', 'step, s', 'quartiles', 'forward', 'backward', 'optimizer', 'tokens/s', '× base'),
        *('× LoRA', 'GFLOP/s', 'temporary, MB', 'compile, s', 'first step, s'),
    ]
    rows = [head]
    for name, found in methods.items():
        low, high = found['step_quartiles_s']
        rows.append(
            [
                name,
                _seconds(found['step_s']),
                f'{_seconds(low)}–{_seconds(high)}' + ('' if found['steady'] else ' *'),
                *(_seconds(found[part]) for part in _SPLIT),
                f'{found["tokens_per_s"]:,.0f}',
                *(_times(found[key]) for key in ('ratio_to_base', 'ratio_to_lora')),
                f'{found["flops_per_s"] / 1e9:,.0f}',
                f'{found["temporary_bytes"] / 1e6:,.0f}',
                f'{found["compile_s"]:.1f}',
                f'{found["first_step_s"]:.1f}',
            ]
        )
    table = markdown.table(rows)
    if not all(found['steady'] for found in methods.values()):
        table += f'\n\n\\* The middle half of the times is wider than {STEADY:.0%} of the median.'
    return table


def _split(times: Times, subject: Subject) -> list[tuple[str, np.ndarray]]:
    """Return the seconds of each part of the step, nan in rounds in which parts are not timed."""
    forward, gradient, step = (times[subject.name][part] for part in PARTS)
    # The step of the base model is its gradient, so the difference would be only noise.
    update = np.zeros_like(step) if subject.name == BASE else np.maximum(step - gradient, 0)
    return list(zip(_SPLIT, (forward, gradient - forward, update), strict=True))


def _ratio(times: Times, name: str, other: str) -> float | None:
    """Return the median ratio of two step times over the rounds; None if one was not measured."""
    if other not in times:
        return None
    return float(np.median(times[name]['step'] / times[other]['step']))


def _seconds(value: float) -> str:
    return f'{value:.3g}' if value < 1 else f'{value:.2f}'


def _times(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'

"""Statistics of a benchmark's measured times, and their table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax import markdown
from malora_jax.benchmark.timed_steps import BASE, PARTS, TimedStep
from malora_jax.benchmark.timing import MAX_RELATIVE_IQR, Times, is_steady

_REFERENCE = 'lora'
# Keys of the seconds of each part of a step. Table 10 of the MALoRA paper has these parts.
_PART_KEYS = ('forward_s', 'backward_s', 'optimizer_s')


def summarize(
    timed_steps: Sequence[TimedStep], times: Times, real_tokens: float, positions: int
) -> dict[str, dict[str, Any]]:
    """Return the statistics of each timed step: times, ratios, throughput, FLOPs and memory.

    The time of the backward pass is the time of the gradient minus that of the forward pass. The
    time of the optimizer is the time of the whole step minus that of the gradient. Differences and
    ratios are computed within each round; the result has the median over the rounds.

    Args:
        timed_steps: Training steps that were timed, one per method.
        times: Seconds of each round, by method and part, from `timing.measure`.
        real_tokens: Mean number of tokens per batch that are not padding, for the throughput.
        positions: Number of positions per batch including padding, for the FLOPs per second.

    Returns:
        Statistics by name of the method. Keys that end in `_s` are in seconds, and keys that end in
        `_bytes` in bytes.
    """
    statistics = {}
    for timed_step in timed_steps:
        seconds = times[timed_step.name]['step']
        low, middle, high = np.percentile(seconds, (25, 50, 75))
        parts = {
            part: float(np.nanmedian(of_part)) for part, of_part in _part_times(times, timed_step)
        }
        statistics[timed_step.name] = {
            'step_s': middle,
            'step_quartiles_s': [low, high],
            'rounds': len(seconds),
            'steady': is_steady(seconds),
            **parts,
            'tokens_per_s': real_tokens / middle,
            'ratio_to_base': _ratio(times, timed_step.name, BASE),
            'ratio_to_lora': _ratio(times, timed_step.name, _REFERENCE),
            'flops_per_token': timed_step.flops_per_token,
            'flops_per_s': timed_step.flops_per_token * positions / middle,
            'trained_parameters': timed_step.trained_parameters,
            'temporary_bytes': timed_step.temporary_bytes,
            'resident_bytes': timed_step.resident_bytes,
            'compile_s': timed_step.compile_s,
            'first_step_s': timed_step.compile_s + timed_step.first_step_s,
        }
    return statistics


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
    for name, statistics in methods.items():
        low, high = statistics['step_quartiles_s']
        rows.append(
            [
                name,
                _seconds(statistics['step_s']),
                f'{_seconds(low)}–{_seconds(high)}' + ('' if statistics['steady'] else ' *'),
                *(_seconds(statistics[part]) for part in _PART_KEYS),
                f'{statistics["tokens_per_s"]:,.0f}',
                *(_format_ratio(statistics[key]) for key in ('ratio_to_base', 'ratio_to_lora')),
                f'{statistics["flops_per_s"] / 1e9:,.0f}',
                f'{statistics["temporary_bytes"] / 1e6:,.0f}',
                f'{statistics["compile_s"]:.1f}',
                f'{statistics["first_step_s"]:.1f}',
            ]
        )
    table = markdown.table(rows)
    if not all(found['steady'] for found in methods.values()):
        limit = f'{MAX_RELATIVE_IQR:.0%}'
        table += (
            '\n\n\\* Unsteady: the interquartile range of the step times is at least '
            f'{limit} of the median.'
        )
    return table


def _part_times(times: Times, timed_step: TimedStep) -> list[tuple[str, np.ndarray]]:
    """Return the seconds of each part of the step, nan in rounds in which parts are not timed."""
    forward, gradient, step = (times[timed_step.name][part] for part in PARTS)
    # The step of the base model is its gradient, so the difference would be only noise.
    update = np.zeros_like(step) if timed_step.name == BASE else np.maximum(step - gradient, 0)
    return list(zip(_PART_KEYS, (forward, gradient - forward, update), strict=True))


def _ratio(times: Times, name: str, other: str) -> float | None:
    """Return the median ratio of two step times over the rounds; None if one was not measured."""
    if other not in times:
        return None
    return float(np.median(times[name]['step'] / times[other]['step']))


def _seconds(value: float) -> str:
    return f'{value:.3g}' if value < 1 else f'{value:.2f}'


def _format_ratio(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'

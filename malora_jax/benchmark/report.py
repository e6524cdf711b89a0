"""What a benchmark found: figures and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malora_jax import markdown
from malora_jax.benchmark.subjects import BASE, PARTS, Subject
from malora_jax.benchmark.timing import STEADY, Times, is_steady

_REFERENCE = 'lora'
# As in Table 10 of the paper.
_SPLIT = ('forward_s', 'backward_s', 'optimizer_s')


def summarize(
    subjects: Sequence[Subject], times: Times, real_tokens: float, positions: int
) -> dict[str, dict[str, Any]]:
    """Figures of each subject.

    The backward pass is what the gradient takes longer than the loss alone, the optimizer what the
    step takes longer than the gradient, by medians over the same rounds. Ratios are medians of the
    ratios of each round.

    Args:
        subjects: what was timed.
        times: of each.
        real_tokens: of a batch.
        positions: of a batch, padding too: what operations are counted for.
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
    """A Markdown table of the figures."""
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
    """The parts of the step, in the rounds that have them."""
    forward, gradient, step = (times[subject.name][part] for part in PARTS)
    # The base's step is its gradient: what is left over is noise.
    update = np.zeros_like(step) if subject.name == BASE else np.maximum(step - gradient, 0)
    return list(zip(_SPLIT, (forward, gradient - forward, update), strict=True))


def _ratio(times: Times, name: str, other: str) -> float | None:
    """Of steps, round by round; None where the other was not measured."""
    if other not in times:
        return None
    return float(np.median(times[name]['step'] / times[other]['step']))


def _seconds(value: float) -> str:
    return f'{value:.3g}' if value < 1 else f'{value:.2f}'


def _times(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'

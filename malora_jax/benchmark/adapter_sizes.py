"""Scaling of the step time and memory with the number of experts or with their rank."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax import markdown
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.base_structure import SubspaceStructure
from malora_jax.adapters.settings import replace_settings
from malora_jax.benchmark.timed_steps import BASE

# Values of the varied adapter field, by field name. The number of active experts per token (top-k
# routing) stays the same.
SIZES = {'num_experts': (4, 8, 16, 32, 64), 'rank': (4, 8, 16, 32, 64, 128)}
# Bytes of a trainable parameter, its gradient and two moments, in float32.
_TRAINED_BYTES = 16


def resize_adapter(adapter: AdapterConfig, field: str, size: int, width: int) -> AdapterConfig:
    """Return an adapter configuration with another number of experts or another rank.

    The shared subspace grows in proportion to the rank and to the number of experts, as in section
    3.3 of the MALoRA paper, but has at most as many dimensions as the model is wide. An adapter
    without a router keeps its only expert.

    Args:
        adapter: Adapter configuration.
        field: 'num_experts' or 'rank', a key of `SIZES`.
        size: New value of the field.
        width: Width of the model.
    """
    if field == 'num_experts' and not adapter.has_router:
        return adapter
    structure = adapter.structure
    current = {'num_experts': adapter.num_experts, 'rank': structure.rank}[field]
    if field == 'num_experts' and not isinstance(structure, SubspaceStructure):
        # Experts that share a projection have its rank.
        return replace_settings(adapter, num_experts=size)
    shared_rank = min(round(structure.subspace_rank * size / current), width)
    return replace_settings(adapter, **{field: size, 'shared_rank': shared_rank})


def lower_bounds(measurements: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[float, float]:
    """Return lower bounds of the time and memory of a method's step, relative to the base model.

    Args:
        measurements: Measurements of the method, from `report.summarize`.
        base: Measurements of the base model, from `report.summarize`.

    Returns:
        The time and the memory in bytes. The time is a multiple of the base model's step time. It
        is computed from the numbers of operations, as if the method's operations ran as fast as
        those of the base model. The memory is that of the base model's step plus the trainable
        parameters, their gradients and moments.
    """
    time = measurements['flops_per_token'] / base['flops_per_token']
    return time, total_bytes(base) + _TRAINED_BYTES * measurements['trained_parameters']


def total_bytes(measurements: Mapping[str, Any]) -> int:
    """Return the memory of a step in bytes: weights, state, batch and temporary buffers.

    Args:
        measurements: Measurements of a method, from `report.summarize`.
    """
    return measurements['resident_bytes'] + measurements['temporary_bytes']


def format_table(field: str, by_size: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a Markdown table with a row for each size and method.

    Args:
        field: Name of the varied field, a key of `SIZES`.
        by_size: Measurements from `report.summarize` by size and method, including the base model.
    """
    rows: list[Sequence[str]] = [
        (field, 'method', 'step, s', '× base', 'lower bound', 'memory, MB', 'lower bound')
    ]
    rows += [
        (
            f'{size}',
            name,
            f'{measurements["step_s"]:.2f}' + ('' if measurements['steady'] else ' *'),
            f'{measurements["ratio_to_base"]:.2f}',
            f'{time:.2f}',
            f'{total_bytes(measurements) / 1e6:,.0f}',
            f'{memory / 1e6:,.0f}',
        )
        for size, name, measurements, (time, memory) in _points(by_size)
    ]
    return markdown.table(rows)


def curves(
    by_size: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, list[float]]]:
    """Return the curves of `plots.plot_scaling` for each method.

    Args:
        by_size: Measurements from `report.summarize` by size and method, including the base model.

    Returns:
        A dict for each method. Each of its values is a list with one number per size. Its keys are
        `size`; `time`, the step time as a multiple of the base model's; `bytes`, the memory of a
        step; and `time_floor` and `bytes_floor`, the lower bounds of time and memory.
    """
    curves_by_method: dict[str, dict[str, list[float]]] = {}
    for size, name, measurements, (time_floor, bytes_floor) in _points(by_size):
        curve = curves_by_method.setdefault(name, {})
        for key, value in (
            ('size', size),
            ('time', measurements['ratio_to_base']),
            ('bytes', total_bytes(measurements)),
            ('time_floor', time_floor),
            ('bytes_floor', bytes_floor),
        ):
            curve.setdefault(key, []).append(value)
    return curves_by_method


def _points(
    by_size: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> Iterator[tuple[int, str, Mapping[str, Any], tuple[float, float]]]:
    """Yield a tuple for each size and method, except for the base model.

    The tuple holds the size, the name of the method, the measurements of the method, and the lower
    bounds of its time and memory, from `lower_bounds`.
    """
    for size, methods in by_size.items():
        for name, measurements in methods.items():
            if name != BASE:
                yield size, name, measurements, lower_bounds(measurements, methods[BASE])

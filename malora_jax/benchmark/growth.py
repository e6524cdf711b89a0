"""How a step's time and memory grow with the number of experts, and with their rank."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malora_jax import markdown
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.methods import changed
from malora_jax.benchmark.subjects import BASE

# What grows, by its name as a field of the adapter; K experts are active throughout.
SIZES = {'num_experts': (4, 8, 16, 32, 64), 'rank': (4, 8, 16, 32, 64, 128)}
# A trained parameter, its gradient and two moments, in float32.
_TRAINED_BYTES = 16


def grown(adapter: AdapterConfig, field: str, size: int, width: int) -> AdapterConfig:
    """A method with more experts or ranks; one without a router keeps its only expert.

    The shared subspace stays the same share of all ranks, d = λ r N (section 3.3 of the paper), as
    far as the model is wide.
    """
    if field == 'num_experts' and not adapter.has_router:
        return adapter
    now = {'num_experts': adapter.num_experts, 'rank': adapter.structure.rank}[field]
    shared_rank = min(round(adapter.structure.subspace_rank * size / now), width)
    return changed(adapter, **{field: size, 'shared_rank': shared_rank})


def floors(found: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[float, float]:
    """The least that a method's step could take, given what the base takes.

    Args:
        found: figures of the method, as `report.summarize` has them.
        base: those of the base.

    Returns:
        Time as a multiple of the base's, were all operations as fast as the base's; and bytes:
        those of the base, and each trained parameter with its gradient and moments.
    """
    time = found['flops_per_token'] / base['flops_per_token']
    return time, total_bytes(base) + _TRAINED_BYTES * found['trained_parameters']


def total_bytes(found: Mapping[str, Any]) -> int:
    """What a step needs: weights, state, batch and temporaries."""
    return found['resident_bytes'] + found['temporary_bytes']


def format_table(field: str, sizes: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table: a row for each size and method.

    Args:
        field: what grows.
        sizes: figures by method, by size, the base's among them.
    """
    rows: list[Sequence[str]] = [
        (field, 'method', 'step, s', '× base', 'floor', 'memory, MB', 'floor')
    ]
    rows += [
        (
            f'{size}',
            name,
            f'{found["step_s"]:.2f}' + ('' if found['steady'] else ' *'),
            f'{found["ratio_to_base"]:.2f}',
            f'{time:.2f}',
            f'{total_bytes(found) / 1e6:,.0f}',
            f'{memory / 1e6:,.0f}',
        )
        for size, name, found, (time, memory) in _points(sizes)
    ]
    return markdown.table(rows)


def curves(
    sizes: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, list[float]]]:
    """By method: `size`, `time` as a multiple of the base's, `bytes`, and the floors of both."""
    found: dict[str, dict[str, list[float]]] = {}
    for size, name, figures, (time_floor, bytes_floor) in _points(sizes):
        curve = found.setdefault(name, {})
        for key, value in (
            ('size', size),
            ('time', figures['ratio_to_base']),
            ('bytes', total_bytes(figures)),
            ('time_floor', time_floor),
            ('bytes_floor', bytes_floor),
        ):
            curve.setdefault(key, []).append(value)
    return found


def _points(
    sizes: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> Iterator[tuple[int, str, Mapping[str, Any], tuple[float, float]]]:
    """Size, name, figures and floors of every method but the base."""
    for size, methods in sizes.items():
        for name, found in methods.items():
            if name != BASE:
                yield size, name, found, floors(found, methods[BASE])

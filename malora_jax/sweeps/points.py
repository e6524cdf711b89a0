"""Points of a sweep: the combinations of values that its fields take."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from malora_jax.errors import UserError
from malora_jax.sweeps.config import Fields, RandomSearch, Range, SweepConfig

Point = dict[str, Any]


def points(sweep: SweepConfig, variant: str) -> list[Point]:
    """Return every combination of the grid with every row of `zip` and every random draw.

    Args:
        sweep: The sweep.
        variant: Name of a variant in `runs`. A variant with its own `zip` has only those points.

    Returns:
        Points, each with values by dotted field name.

    Raises:
        UserError: There are fewer distinct random points than requested, or two points are equal.
    """
    if variant in sweep.run_zips:
        return _check_distinct(_zip_points(sweep.run_zips[variant]))
    grid = [
        dict(zip(sweep.grid, values, strict=True))
        for values in itertools.product(*sweep.grid.values())
    ]
    drawn = _random_points(sweep.random_search) if sweep.random_search else [{}]
    return _check_distinct(
        [
            grid_point | row | draw
            for grid_point, row, draw in itertools.product(grid, _zip_points(sweep.zipped), drawn)
        ]
    )


def _zip_points(zipped: Fields) -> list[Point]:
    """Return a point for each row of zipped values; one empty point if no field is zipped."""
    rows = zip(*zipped.values(), strict=True)
    return [dict(zip(zipped, values, strict=True)) for values in rows] or [{}]


def _check_distinct(found: list[Point]) -> list[Point]:
    for number, point in enumerate(found):
        if point in found[:number]:
            described = ', '.join(f'{name} = {value!r}' for name, value in point.items())
            raise UserError(f'The sweep has the same values twice: {described}.')
    return found


def _random_points(search: RandomSearch) -> list[Point]:
    """Return the requested number of distinct random points."""
    unique: list[Point] = []
    for point in itertools.islice(_random_point_stream(search), 100 * search.count):
        if point not in unique:
            unique.append(point)
        if len(unique) == search.count:
            return unique
    raise UserError(
        f'random.draws is {search.count}; only {len(unique)} different points were found in these '
        'ranges.'
    )


def _random_point_stream(search: RandomSearch) -> Iterator[Point]:
    rng = random.Random(search.seed)
    while True:
        yield {name: _random_value(rng, spec) for name, spec in search.fields.items()}


def _random_value(rng: random.Random, spec: Range | tuple[Any, ...]) -> Any:
    """Return a random value; floats get three significant digits, so that run names are exact."""
    if isinstance(spec, tuple):
        return rng.choice(spec)
    if spec.scale == 'log':
        value = math.exp(rng.uniform(math.log(spec.low), math.log(spec.high)))
    else:
        value = rng.uniform(spec.low, spec.high)
    if type(spec.low) is int and type(spec.high) is int:
        return round(value)
    return min(max(float(f'{value:.3g}'), spec.low), spec.high)

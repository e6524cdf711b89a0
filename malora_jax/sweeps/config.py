"""Validated sweep configs: frozen dataclasses made from a config of configs/sweeps."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from malora_jax import errors
from malora_jax.runs.paper import PAPER_TABLES

METRICS = ('score', 'loss')
# Names that are valid directory names on any file system.
_NAME = re.compile(r'[A-Za-z0-9][\w.+=-]*')
# Fields of a run's config that cannot be swept, and how the sweep sets them instead.
_ELSEWHERE = {'seed': 'set it in seeds', 'method': 'set it in the arg of each entry of runs'}

Fields = Mapping[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Range:
    """Range from which random values of a field are drawn.

    Attributes:
        low, high: Smallest and largest value. If both are integers, integers are drawn.
        scale: Distribution: 'linear' for uniform, 'log' for log-uniform.
    """

    low: float
    high: float
    scale: str = 'linear'


@dataclasses.dataclass(frozen=True)
class RandomSearch:
    """Random search: runs with random values of some config fields.

    Attributes:
        count: Number of points to draw. A point has one value for each of the fields.
        seed: Random seed of the draws.
        fields: Ranges, or tuples of values to choose from, by dotted field name.
    """

    count: int
    seed: int
    fields: Mapping[str, Range | tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class SweepReportConfig:
    """Settings of a sweep's report.

    Attributes:
        metrics: Metrics to plot, among `METRICS`.
        plots: Dotted names of the fields to plot the metrics against; () for all numeric fields
            that the sweep changes.
        table: Name of the paper's table whose numbers are shown next to ours; '' for none.

    Raises:
        UserError: A field has a wrong type, or a metric or the table is unknown.
    """

    metrics: tuple[str, ...] = METRICS
    plots: tuple[str, ...] = ()
    table: str = ''

    def __post_init__(self):
        errors.check_types('report', self)
        if not self.metrics:
            raise errors.out_of_range('report.metrics', (), f'some of {", ".join(METRICS)}')
        for metric in self.metrics:
            if metric not in METRICS:
                raise errors.unknown_name('metric in report.metrics', metric, METRICS)
        if self.table and self.table not in PAPER_TABLES:
            raise errors.unknown_name('report.table', self.table, PAPER_TABLES)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Validated config of a sweep.

    Attributes:
        base: Path of the config file from which all runs start.
        seeds: Random seeds; each run is repeated with each of them.
        runs: Variants by name. Each has an `arg` (argument of the config file, such as the method),
            and optionally `overrides` (values of other config fields), and `seeds` and a `zip` of
            its own.
        run_zips: Values for variants that have a `zip` of their own, by variant, then by dotted
            field. Such a variant uses these values instead of `grid`, `zipped` and `random_search`.
        grid: Values by dotted field; every combination is a run.
        zipped: Values by dotted field. The first values of all fields make one run, the second
            values the next, and so on.
        random_search: Random search, or None.
        subspace_share: Share λ of the rank budget that MALoRA's shared subspace gets. The rank d of
            the subspace is then computed as d = λ r N, where r is the swept rank and N is the
            number of experts. 0 keeps the d of each run's config. None if the sweep does not set
            the share.
        report: Settings of the report.
    """

    base: str
    seeds: tuple[int, ...]
    runs: Mapping[str, Mapping[str, Any]]
    run_zips: Mapping[str, Fields]
    grid: Fields
    zipped: Fields
    random_search: RandomSearch | None
    subspace_share: float | None
    report: SweepReportConfig

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Return the random seeds of a variant: its own, or else those of the sweep."""
        return self.runs[variant].get('seeds', self.seeds)

    @property
    def fields(self) -> list[str]:
        """Dotted names of the fields in `grid`, `zipped` and `random_search`."""
        return [
            *self.grid,
            *self.zipped,
            *(self.random_search.fields if self.random_search else ()),
        ]

    def fields_of(self, variant: str) -> list[str]:
        """Return the dotted names of the fields that change among the runs of a variant.

        Fields that the variant overrides with one value are not among them.
        """
        return [*self.run_zips[variant]] if variant in self.run_zips else self.fields

    @property
    def all_fields(self) -> list[str]:
        """Dotted names of the fields that change in any run."""
        return list(
            dict.fromkeys([*self.fields, *(name for own in self.run_zips.values() for name in own)])
        )

    def linked_fields(self, variant: str, field: str) -> set[str]:
        """Return a field and all fields whose values change together with it, in a variant's runs.

        Args:
            variant: Name of the variant.
            field: Dotted name of the field.
        """
        drawn = self.random_search.fields if self.random_search else {}
        for section in (self.run_zips.get(variant, {}), self.zipped, drawn):
            if field in section:
                return {*section}
        return {field}


def sweep_config(config: Mapping[str, Any]) -> SweepConfig:
    """Convert and validate a sweep as it is written in configs/sweeps.

    Args:
        config: Config of the sweep, as plain dicts.

    Raises:
        UserError: A field is unknown, missing or empty, or has a value of the wrong type.
    """
    known = ('base', 'seeds', 'runs', 'grid', 'zip', 'random', 'subspace_share', 'report')
    if 'base' not in config:
        raise errors.UserError(
            'base is missing: a sweep names the config file that its runs start from.'
        )
    _check_names('sweep', config, known)
    for field in ('seeds', 'runs'):
        if field not in config:
            raise errors.UserError(f'{field} is missing from the sweep.')
    report = _section('report', config.get('report', {}))
    _check_names('report', report, [field.name for field in dataclasses.fields(SweepReportConfig)])
    runs = _runs(config['runs'])
    sweep = SweepConfig(
        base=_text('base', config['base']),
        seeds=_seeds('seeds', config['seeds']),
        runs=runs,
        run_zips={
            name: _values('zip', run, f'runs.{name}.') for name, run in runs.items() if 'zip' in run
        },
        grid=_values('grid', config),
        zipped=_values('zip', config),
        random_search=_random_search(config['random']) if 'random' in config else None,
        subspace_share=_share(config.get('subspace_share')),
        report=SweepReportConfig(**report),
    )
    for where, fields in [('zip', sweep.zipped)] + [
        (f'runs.{name}.zip', fields) for name, fields in sweep.run_zips.items()
    ]:
        if len({len(values) for values in fields.values()}) > 1:
            described = ', '.join(f'{name} has {len(values)}' for name, values in fields.items())
            raise errors.UserError(
                f'{where}: all fields must have the same number of values; {described}.'
            )
    for name in sweep.fields:
        if sweep.fields.count(name) > 1:
            raise errors.UserError(f'{name} is in several of grid, zip and random: keep one.')
    for name in sweep.all_fields:
        if name in _ELSEWHERE:
            raise errors.UserError(f'{name} cannot be in grid, zip or random: {_ELSEWHERE[name]}.')
    return sweep


def _check_names(section: str, values: Mapping[str, Any], known: Any) -> None:
    for name in values:
        if name not in known:
            raise errors.unknown_name(f'field of the {section}', name, known)


def _section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise errors.out_of_range(name, value, 'a section with fields')
    return dict(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise errors.out_of_range(name, value, 'text in quotes')
    return value


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, tuple) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise errors.out_of_range(name, value, 'a tuple of different whole numbers, such as (0,)')
    return value


def _runs(value: Any) -> dict[str, dict[str, Any]]:
    runs = {name: _section(f'runs.{name}', run) for name, run in _section('runs', value).items()}
    if not runs:
        raise errors.UserError('runs is empty: name at least one, with its arg.')
    for name, run in runs.items():
        if not _NAME.fullmatch(name):
            raise errors.out_of_range('A name in runs', name, 'letters, digits and any of _.+=-')
        _check_names(f'run {name}', run, ('arg', 'overrides', 'seeds', 'zip'))
        if 'seeds' in run:
            _seeds(f'runs.{name}.seeds', run['seeds'])
        _text(f'runs.{name}.arg', run.get('arg'))
        _section(f'runs.{name}.overrides', run.get('overrides', {}))
    return runs


def _values(section: str, config: Mapping[str, Any], prefix: str = '') -> Fields:
    """Return the tuples of values in a section, by dotted field name."""
    if section not in config:
        return {}
    fields = _flatten(prefix + section, config[section])
    for name, values in fields.items():
        if not isinstance(values, tuple):
            raise errors.out_of_range(f'{prefix}{section}.{name}', values, 'a tuple of values')
        if not values:
            raise errors.UserError(
                f'{prefix}{section}.{name} is empty: give it at least one value.'
            )
    return fields


def _random_search(value: Any) -> RandomSearch:
    section = _section('random', value)
    _check_names('random section', section, ('draws', 'seed', 'fields'))
    for name, minimum in (('draws', 1), ('seed', 0)):
        number = section.get(name)
        if type(number) is not int or number < minimum:
            expected = f'a whole number of at least {minimum}'
            raise errors.out_of_range(f'random.{name}', number, expected)
    fields = _flatten(
        'random.fields', section.get('fields', {}), is_leaf=lambda node: 'low' in node
    )
    ranges = {name: _range(f'random.fields.{name}', spec) for name, spec in fields.items()}
    return RandomSearch(section['draws'], section['seed'], ranges)


def _range(name: str, spec: Any) -> Range | tuple[Any, ...]:
    if isinstance(spec, tuple) and spec:
        return spec
    if not isinstance(spec, Mapping) or not {'low', 'high'} <= spec.keys() <= {
        *('low', 'high', 'scale')
    }:
        expected = "a tuple of values, or low, high and scale ('linear' or 'log')"
        raise errors.out_of_range(name, spec, expected)
    found = Range(**spec)
    for bound in (found.low, found.high):
        if type(bound) not in (int, float) or not math.isfinite(bound):
            raise errors.out_of_range(f'{name}.low or high', bound, 'a finite number')
    if found.scale not in ('linear', 'log'):
        raise errors.unknown_name(f'{name}.scale', found.scale, ('linear', 'log'))
    if not found.low < found.high or (found.scale == 'log' and found.low <= 0):
        expected = 'below high, and positive where the scale is log'
        raise errors.out_of_range(f'{name}.low', found.low, expected)
    return found


def _share(value: Any) -> float | None:
    if value is not None and (type(value) not in (int, float) or not 0 <= value < 1):
        raise errors.out_of_range('subspace_share', value, 'at least 0 and below 1')
    return value


def _flatten(section: str, value: Any, is_leaf: Any = lambda _: False) -> dict[str, Any]:
    """Return a nested section as a flat dict with dotted names."""
    tree = _section(section, value)
    if not tree:
        raise errors.UserError(
            f'{section} is empty: name a field with its values, or leave it out.'
        )
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping) and not is_leaf(node):
            inner = _flatten(f'{section}.{name}', node, is_leaf)
            flat |= {f'{name}.{field}': values for field, values in inner.items()}
        else:
            flat[name] = node
    return flat

"""A table of TPU slices: does a run's step fit, what do chips send, as models and slices grow."""

import copy
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import tqdm

from malora_jax import files, markdown
from malora_jax.distributed.topology import tpu_devices
from malora_jax.training.config import run_config
from malora_jax.training.topology import compiled_for

_HEAD = [
    *('model', 'chips', 'rows', 'fits', 'GB a chip', 'of them arguments', 'gathered GB'),
    *('summed GB', 'estimated Gcycles'),
]


_REMEDY = 'restore it from a copy, or choose another --output'


class Cell(TypedDict):
    """What names a compiled program."""

    model: str
    topology: str
    rows: int
    sequence_length: int
    method: str
    dtype: str


def scaling_table(
    config: Mapping[str, Any],
    models: Sequence[str],
    topologies: Sequence[str],
    rows_per_chip: int,
    path: pathlib.Path,
) -> str:
    """Compiles the step of every model for every topology; cells that the file has are kept.

    Args:
        config: as written in configs/; the model, the mesh (`fsdp` over all chips) and
            `data.batch_size` are those of the cell.
        models: values of `config.model.name`.
        topologies: such as 'v5e:4x4'.
        rows_per_chip: rows of a batch for each chip.
        path: a JSON file of cells, written after each.

    Returns:
        The table in Markdown: bytes in GB of 10⁹, of one chip and one step.

    Raises:
        UserError: a mistake in the config, no such topology, or no compiler for it.
    """
    cells = files.read_json(path, list[Cell], _REMEDY) if path.exists() else []
    known = {_key(cell): cell for cell in cells}
    wanted = list(_cells(config, models, topologies, rows_per_chip))
    for cell, changed in tqdm.tqdm(wanted, unit='program'):
        if _key(cell) not in known:
            known[_key(cell)] = cell | compiled_for(run_config(changed), cell['topology'])
            files.write_json(path, list(known.values()))
    return markdown.table([_HEAD, *(_row(known[_key(cell)]) for cell, _ in wanted)])


def _cells(
    config: Mapping[str, Any],
    models: Sequence[str],
    topologies: Sequence[str],
    rows_per_chip: int,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What names a cell, and its config."""
    for model in models:
        for topology in topologies:
            chips = len(tpu_devices(topology))
            changed = copy.deepcopy(dict(config))
            changed['model']['name'] = model
            changed['mesh']['fsdp'] = chips
            changed['data']['batch_size'] = rows = rows_per_chip * chips
            length = changed['data']['sequence_length']
            names = {'method': changed['method'], 'dtype': changed['model']['dtype']}
            cell = {'model': model, 'topology': topology, 'rows': rows, 'sequence_length': length}
            yield cell | names, changed


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ('model', 'topology', 'rows', 'sequence_length', 'method', 'dtype')
    return tuple(cell[name] for name in names)


def _row(cell: Mapping[str, Any]) -> list[str]:
    head = [cell['model'], cell['topology'], f'{cell["rows"]} × {cell["sequence_length"]}']
    memory = f'{cell["bytes_per_device"] / 1e9:.2f}'
    if not cell['fits']:
        change = cell['change'] or {}
        fields = ', '.join(
            f'{field}={value}' for field, value in change.items() if field != 'bytes_per_device'
        )
        found = f'no; {fields}: {change["bytes_per_device"] / 1e9:.2f} GB' if change else 'no'
        return [*head, found, memory, *('–' for _ in range(4))]
    sent = cell['collective_bytes']
    return [
        *head,
        'yes',
        memory,
        f'{cell["bytes"]["arguments"] / 1e9:.2f}',
        f'{sent.get("all-gather", 0) / 1e9:.1f}',
        f'{(sent.get("all-reduce", 0) + sent.get("reduce-scatter", 0)) / 1e9:.2f}',
        f'{cell["estimated_cycles"] / 1e9:.2f}',
    ]

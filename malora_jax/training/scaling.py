"""Scaling table: memory, communication and cycles of a training step by model and topology."""

import copy
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from malora_jax import files, markdown
from malora_jax.distributed.topology import get_topology
from malora_jax.progress import track
from malora_jax.training.config import run_config
from malora_jax.training.topology_compile import compile_for_topology

_HEAD = [
    *('model', 'devices', 'rows', 'fits', 'GB per device', 'arguments GB', 'all-gather GB'),
    *('all-reduce GB', 'estimated Gcycles'),
]


_REMEDY = 'restore it from a copy, or choose another --output'


class ScalingCell(TypedDict):
    """Settings of one compiled training step, which is one row of the scaling table.

    No two rows have the same settings. In the JSON file that `scaling_table` writes, a row also has
    the compiler's estimates.
    """

    model: str
    topology: str
    rows: int
    sequence_length: int
    method: str
    dtype: str
    attention: NotRequired[str]  # Missing in files of versions without attention kernels: XLA.


def scaling_table(
    config: Mapping[str, Any],
    models: Sequence[str],
    topologies: Sequence[str],
    rows_per_chip: int,
    path: pathlib.Path,
) -> str:
    """Compile the training step of every model for every topology, and return a table.

    A cell is one compiled step, a row of the table. Its mesh is FSDP over all chips of the
    topology. Cells that the file already has are not compiled again.

    Args:
        config: Nested config as written in configs/. Its `model.name`, `mesh.fsdp` and
            `data.batch_size` are replaced by those of each cell.
        models: Values of `config.model.name`.
        topologies: Names of topologies, such as 'v5e:4x4' or 'h100:8'.
        rows_per_chip: Rows of a batch per chip.
        path: JSON file of the cells, which is written after each compilation.

    Returns:
        The Markdown table. Sizes are in GB (10⁹ bytes), for one chip and one step. `all-reduce GB`
        includes reduce-scatter.

    Raises:
        UserError: The config or the file is invalid, or a topology is unknown or its compiler is
            not installed.
    """
    cells = files.read_json(path, list[ScalingCell], _REMEDY) if path.exists() else []
    known = {_key(cell): cell for cell in cells}
    requested = list(_cells(config, models, topologies, rows_per_chip))
    for cell, changed in track(requested, 'compile', 'program'):
        if _key(cell) not in known:
            known[_key(cell)] = cell | compile_for_topology(run_config(changed), cell['topology'])
            files.write_json(path, list(known.values()))
    return markdown.table([_HEAD, *(_row(known[_key(cell)]) for cell, _ in requested)])


def _cells(
    config: Mapping[str, Any],
    models: Sequence[str],
    topologies: Sequence[str],
    rows_per_chip: int,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the settings (see `ScalingCell`) and the config of each row of the table."""
    for model in models:
        for topology in topologies:
            devices = get_topology(topology).devices
            changed = copy.deepcopy(dict(config))
            changed['model']['name'] = model
            changed['mesh']['fsdp'] = len(devices)
            changed['data']['batch_size'] = rows = rows_per_chip * len(devices)
            length = changed['data']['sequence_length']
            names = {'method': changed['method'], 'dtype': changed['model']['dtype']}
            names['attention'] = run_config(changed).choose_attention(devices[0]).backend
            cell = {'model': model, 'topology': topology, 'rows': rows, 'sequence_length': length}
            yield cell | names, changed


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ('model', 'topology', 'rows', 'sequence_length', 'method', 'dtype')
    return *(cell[name] for name in names), cell.get('attention', 'xla')


def _row(cell: Mapping[str, Any]) -> list[str]:
    head = [cell['model'], cell['topology'], f'{cell["rows"]} × {cell["sequence_length"]}']
    memory = f'{cell["bytes_per_device"] / 1e9:.2f}'
    if not cell['fits']:
        change = cell['change'] or {}
        fields = ', '.join(f'{field}={value}' for field, value in change.items() if '.' in field)
        fits = f'no; {fields}: {change["bytes_per_device"] / 1e9:.2f} GB' if change else 'no'
        return [*head, fits, memory, *('–' for _ in range(4))]
    sent = cell['collective_bytes']
    return [
        *head,
        'yes',
        memory,
        f'{cell["bytes"]["arguments"] / 1e9:.2f}',
        f'{sent.get("all-gather", 0) / 1e9:.1f}',
        f'{(sent.get("all-reduce", 0) + sent.get("reduce-scatter", 0)) / 1e9:.2f}',
        f'{cell["estimated_cycles"] / 1e9:.2f}' if 'estimated_cycles' in cell else '–',
    ]

"""Numbers in the documentation equal those that the commands print."""

import importlib
import re

import pytest

from malora_jax.adapters import METHODS, method
from malora_jax.training import run_config
from malora_jax.training.plan import plan
from tests.helpers.paths import ROOT

PARAMETERS = (ROOT / 'docs' / 'methods' / 'parameters.md').read_text('utf-8')


def planned_row(name: str) -> list[str]:
    """Return the expected row of the table of methods, without its equation."""
    config = importlib.import_module('configs.quickstart').get_config(name)
    config.model.name = 'llama2-7b'
    config.model.dtype = 'bfloat16'
    found, settings = plan(run_config(config.to_dict())), method(name)
    structure = settings.structure
    parameters, flops = found['parameters'], found['flops_per_token']
    size = str(structure.rank)
    if settings.has_router:
        size += f', {settings.router.top_k} of {settings.num_experts}'
    if 'core' in structure.factors:
        size += f', d {structure.subspace_rank}'
    return [
        size,
        f'{parameters["trainable"]:,}',
        f'{parameters["frozen_in_adapter"]:,}',
        f'{parameters["percent_of_base"]:.3f}',
        f'{(flops["adapter_forward"] + flops["adapter_backward"]) / 1e9:.2f}',
        f'{found["memory_bytes"]["total"] / 1e9:.2f}',
    ]


@pytest.mark.parametrize('name', METHODS)
def test_the_table_of_methods_is_the_plans(name):
    (row,) = re.findall(rf'^\| `{name}` \|(.*)\|$', PARAMETERS, re.MULTILINE)
    assert [cell.strip() for cell in row.split('|')][1:] == planned_row(name)


def test_methods_stand_in_the_table_in_order():
    rows = re.findall(r'^\| `(\w+)` \|(?:[^|]*\|){7}$', PARAMETERS, re.MULTILINE)
    assert rows == list(METHODS)

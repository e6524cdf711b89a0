"""Training on eight devices equals training on one, for every structure and kind of mesh.

The meshes cover data parallelism, FSDP, tensor parallelism, and a mixture with expert parallelism.
They are in a separate process, because the number of devices is fixed when JAX starts.
"""

import concurrent.futures
import itertools
import json
import os
import subprocess
import sys

import pytest

from tests.distributed.sharded_steps import MASKS
from tests.helpers.models import LAYOUTS, STRUCTURES
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.devices(start_first=True)

MESHES = {
    'data': (8, 1, 1, 1),
    'fsdp': (1, 8, 1, 1),
    'tensor': (2, 1, 4, 1),
    'expert': (2, 1, 1, 4),
    'mixed': (1, 2, 2, 2),
}
# Input and output widths of the adapted linears.
LINEARS = {
    'q': (64, 88),
    'k': (64, 44),
    'v': (64, 44),
    'gate': (64, 104),
    'up': (64, 104),
    'down': (104, 64),
}
KERNELS = set(LINEARS.values())


@pytest.fixture(scope='module')
def measured() -> dict[str, dict[str, dict]]:
    """Return the output of `sharded_steps` by mesh and method.

    The mixed mesh, which splits rows, inputs, outputs and experts, has every layout, and the meshes
    that split an adapter have every structure. Data parallelism splits only the batch. Sampled
    experts and dropout masks are the same on all devices. AdaMoLE is sharded like MoLoRA; its gates
    are quotients of small differences, so that it cannot be compared to the same bounds. FlyLoRA is
    sharded like SMoRA.
    """
    structures = [name for name in STRUCTURES if name not in ('adamole', 'flylora')]
    layouts = [name for name in LAYOUTS if name != 'adamole']
    methods = dict.fromkeys(MESHES, structures)
    methods |= {
        'data': ('lora', 'dora', 'malora', 'remix'),
        'mixed': (*layouts, 'remix', *MASKS),
        'expert': (*structures, *MASKS),
    }
    cases = [
        (method, {mesh: sizes for mesh, sizes in MESHES.items() if method in methods[mesh]})
        for method in dict.fromkeys([*structures, *layouts, 'remix', *MASKS])
    ]
    found: dict[str, dict[str, dict]] = {mesh: {} for mesh in MESHES}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for lines in pool.map(_measure, (dict(cases[::2]), dict(cases[1::2]))):
            for line in lines:
                found[line['mesh']][line['method']] = line
    return found


def _measure(cases: dict[str, dict[str, tuple[int, ...]]]) -> list[dict]:
    """Return the lines that a process prints for some methods."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.distributed.sharded_steps', json.dumps(cases)],
        cwd=ROOT,
        # No program is compiled twice, and to keep one takes a tenth of the time of compiling it.
        env={**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line['method'], line['mesh']) for line in lines] == [
        (method, mesh) for method, meshes in cases.items() for mesh in meshes
    ]
    return lines


@pytest.mark.parametrize('mesh', MESHES)
def test_losses_gradients_and_adapter_are_those_of_one_device(mesh, measured):
    """Compare after five steps from B ≠ 0, in float32, with dropout.

    The tolerances are relative to the largest loss or a leaf's largest entry: 1e-6 for losses, 2e-4
    for the fifth step's gradients, and 1e-5 for the adapter.
    """
    for method, found in measured[mesh].items():
        assert found['losses'] < 1e-6, method
        assert found['gradients'] < 2e-4, method
        assert found['adapter'] < 1e-5, method


@pytest.mark.parametrize('mesh', MESHES)
def test_no_gradient_of_the_base_is_sent(mesh, measured):
    """The base model is frozen, so no kernel or part of one is summed over devices."""
    _, fsdp, tensor, _ = MESHES[mesh]
    parts = {
        (D // rows, F // columns)
        for D, F in KERNELS
        for rows, columns in itertools.product({1, fsdp, tensor}, repeat=2)
    }
    for method, found in measured[mesh].items():
        summed = found['collectives'].get('all-reduce', [])
        summed = summed + found['collectives'].get('reduce-scatter', [])
        assert summed, method
        for shape in summed:
            layered = [shape, shape[1:]] if len(shape) == 3 else [shape]
            assert not any(tuple(each) in parts for each in layered), (method, shape)


def test_only_fsdp_gathers_kernels(measured):
    def gathered(mesh: str) -> bool:
        shapes = measured[mesh]['lora']['collectives'].get('all-gather', [])
        return any(tuple(shape[-2:]) in KERNELS for shape in shapes)

    assert gathered('fsdp')
    assert not gathered('data')


def test_adapter_gradients_are_summed_over_rows(measured):
    """Otherwise only scalars are summed; the arrays are the factors of LoRA's linears, in the loop.

    Linears with the same input (q, k, v and gate, up) have their down-projections in one array.
    """
    collectives = measured['data']['lora']['collectives']
    assert list(collectives) == ['all-reduce']
    factors = [shape for shape in collectives['all-reduce'] if len(shape) > 1]
    down = [(64, 3 * 7), (64, 2 * 7), (104, 7)]
    up = [(7, outputs) for _, outputs in LINEARS.values()]
    assert sorted(map(sorted, factors)) == sorted(map(sorted, down + up))

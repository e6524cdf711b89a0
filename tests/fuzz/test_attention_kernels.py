"""Attention kernels on random shapes and packings, interpreted, against float64.

A kernel that passes is entered into `malora_jax/models/verified_kernels.py` with the installed
version of JAX. `model.attention='auto'` uses it only with such versions.
"""

import itertools
import pathlib

import jax
import numpy as np
import pytest

from malora_jax.benchmark.attention_check import OUTPUTS, TOLERANCES, errors, random_packing
from malora_jax.models import verified_kernels
from malora_jax.models.attention_backends import HEAD_WIDTHS, KERNELS

pytestmark = pytest.mark.fuzz

_KINDS = tuple(itertools.product(('float32', 'bfloat16'), HEAD_WIDTHS))


@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_random_packings(backend, attempts):
    largest = {dtype: dict.fromkeys(OUTPUTS, 0.0) for dtype in ('float32', 'bfloat16')}
    for (dtype, head_width), random in zip(itertools.cycle(_KINDS), attempts(8), strict=False):
        num_kv_heads = random.randint(1, 2)
        packing = random_packing(
            np.random.default_rng(random.getrandbits(64)),
            rows=random.randint(1, 2),
            # As many short rows as long ones.
            length=round(2 ** random.uniform(0, 11)),
            max_segments=64,
            num_heads=num_kv_heads * random.randint(1, 8),
            num_kv_heads=num_kv_heads,
            head_width=head_width,
            dtype=dtype,
        )
        found = errors(backend, packing, interpret=True)
        for name, error in found.items():
            largest[dtype][name] = max(largest[dtype][name], error)
        assert max(found.values()) < TOLERANCES[backend, dtype], (packing.q.shape, found)
    print(f'Largest errors of {backend}: {largest}')
    if backend in KERNELS:
        _enter_into_table(backend)


def _enter_into_table(backend: str) -> None:
    versions = verified_kernels.VERIFIED_VERSIONS
    if jax.__version__ not in versions[backend]:
        versions[backend] += (jax.__version__,)
        lines = [f'    {name!r}: {each!r},\n' for name, each in versions.items()]
        path = pathlib.Path(verified_kernels.__file__)
        head, _, _ = path.read_text('utf-8').partition('= {\n')
        path.write_text(f'{head}= {{\n{"".join(lines)}}}\n', 'utf-8')

"""Attention kernels on random shapes and packings, interpreted, against float64.

A kernel that passes a run of many packings is entered into `malora_jax/models/verified_kernels.py`
with the installed version of JAX. `model.attention='auto'` uses it only with such versions:

    python -m pytest tests/fuzz/test_attention_kernels.py -m fuzz --fuzz-minutes=10
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.benchmark.attention_check import (
    OUTPUTS,
    TOLERANCES,
    Packing,
    attention_function,
    errors,
    random_packing,
    reference,
    relative_errors,
    value_and_gradients,
)
from malora_jax.models import verified_kernels
from malora_jax.models.attention_backends import HEAD_WIDTHS, KERNELS

pytestmark = pytest.mark.fuzz

# Number of random packings that a kernel must pass to be verified.
_ENOUGH = 100
_KINDS = tuple(itertools.product(('float32', 'bfloat16'), HEAD_WIDTHS))


@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_random_packings(backend, attempts):
    largest = {dtype: dict.fromkeys(OUTPUTS, 0.0) for dtype in ('float32', 'bfloat16')}
    packings = 0
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
        packings += 1
        for name, error in found.items():
            largest[dtype][name] = max(largest[dtype][name], error)
        assert max(found.values()) < TOLERANCES[backend, dtype], (packing.q.shape, found)
    print(f'Largest errors of {backend} in {packings} packings: {largest}')
    if backend in KERNELS and packings >= _ENOUGH:
        _enter_into_table(backend)


def _enter_into_table(backend: str) -> None:
    versions = verified_kernels.VERIFIED_VERSIONS
    if jax.__version__ not in versions[backend]:
        versions[backend] += (jax.__version__,)
        lines = [f'    {name!r}: {each!r},\n' for name, each in versions.items()]
        path = pathlib.Path(verified_kernels.__file__)
        head, _, _ = path.read_text('utf-8').partition('= {\n')
        path.write_text(f'{head}= {{\n{"".join(lines)}}}\n', 'utf-8')


@pytest.mark.parametrize('length', [8192, 32768])
@pytest.mark.parametrize('backend', ['xla', *KERNELS])
def test_long_rows(backend, length, request):
    if length > 8192 and not request.config.getoption('fuzz_minutes'):
        pytest.skip('only with --fuzz-minutes')
    packing, expected = _long_row(length)
    found = value_and_gradients(attention_function(backend, interpret=True), packing)
    largest = relative_errors(found, expected)
    assert max(largest.values()) < TOLERANCES[backend, 'float32'], largest


@functools.cache
def _long_row(length: int) -> tuple[Packing, tuple[np.ndarray, ...]]:
    """Return a row of many examples, and its outputs in float64, which all backends share."""
    packing = random_packing(
        np.random.default_rng(length),
        rows=1,
        length=length,
        max_segments=1,
        num_heads=1,
        num_kv_heads=1,
        head_width=64,
        dtype='float32',
    )
    # Examples of 1 to 4,096 tokens, and padding.
    ends = np.cumsum([700, 4096, 1, 130, *[2000] * 14])
    segments_T = 1 + (np.arange(length)[:, None] >= ends).sum(axis=1)
    segments_T[-100:] = 0
    packing = packing._replace(segments=jnp.asarray(segments_T[None], jnp.int32))
    return packing, reference(packing)

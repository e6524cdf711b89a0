"""Rows of 8,192 and 32,768 tokens: RoPE with its scaling, and packing.

`tests/fuzz/test_attention_kernels.py` tests attention in such rows.
"""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.data import Example, encode_example, get_template, packed_batches
from malora_jax.models import preset
from malora_jax.models.attention import apply_rope
from tests.helpers.data import ByteTokenizer, as_bytes, unpack

LENGTHS = (8192, 32768)


@pytest.mark.parametrize('length', LENGTHS)
def test_rope_of_llama_3_1(length):
    """Angles are float32, so their error grows with the position: 2⁻²⁴ of 32,768 is 0.002."""
    config = preset('llama3.1-8b')
    scaling, half = config.rope_scaling, config.head_width // 2
    positions = np.linspace(0, length - 1, 200).astype(np.int32)
    wavelengths = 2 * np.pi * config.rope_theta ** (np.arange(half) / half)
    turns = scaling.original_context / wavelengths
    # Above 4 turns in the original context as it is, below 1 turn slower by the factor.
    assert (scaling.high_frequency_factor, scaling.low_frequency_factor) == (4, 1)
    slower = np.clip((4 - turns) / 3, 0, 1)
    frequencies = 2 * np.pi / wavelengths * (1 - slower + slower / scaling.factor)
    angles = positions[:, None] * frequencies
    pairs = np.random.default_rng(0).normal(size=(2, len(positions), half)).astype(np.float32)
    expected = np.concatenate(
        [
            pairs[0] * np.cos(angles) - pairs[1] * np.sin(angles),
            pairs[1] * np.cos(angles) + pairs[0] * np.sin(angles),
        ],
        axis=1,
    )
    x_BTHC = jnp.asarray(np.concatenate(list(pairs), axis=1))[None, :, None]
    found = apply_rope(x_BTHC, jnp.asarray(positions)[None], config.rope_theta, scaling)
    error = np.abs(np.asarray(found[0, :, 0], np.float64) - expected).max()
    assert error < 2.0**-24 * length * 4, error


@pytest.mark.parametrize('length', LENGTHS)
def test_packing(length):
    tokenizer, template, rng = ByteTokenizer(), get_template('plain'), random.Random(0)
    sizes = [*(rng.randint(1, 400) for _ in range(300)), length // 2, length - 40]
    examples = [(Example('q' * size, str(i), {}), i % 5) for i, size in enumerate(sizes)]
    batches = list(packed_batches(examples, tokenizer, template, length, batch_size=1))
    expected = [encode_example(tokenizer, template, e, task, length) for e, task in examples]
    assert as_bytes(unpack(batches)) == as_bytes(expected)
    assert max(batch['segment_ids'].max() for batch in batches) > 40
    for batch in batches:
        starts = np.flatnonzero(np.diff(batch['segment_ids'][0], prepend=0))
        assert not batch['positions'][0, starts].any()

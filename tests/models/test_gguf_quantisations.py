"""Every supported GGUF quantization, compared with the format's formulas, block by block.

The k-quants (super-blocks of 256 values) are decoded here value by value, as ggml's documentation
of the structs specifies; the `gguf` package itself can write the others.
"""

import pathlib

import gguf
import numpy as np
import pytest

from malora_jax.errors import UserError
from malora_jax.models.loading.gguf_file import GGUFFile

ROWS, COLUMNS = 37, 512
KINDS = gguf.GGMLQuantizationType


def write(path: pathlib.Path, kind: str, rows: np.ndarray) -> GGUFFile:
    """Write a file with one tensor whose stored rows are given."""
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_tensor('some.weight', rows, raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


def read(file: GGUFFile, rows: int) -> np.ndarray:
    shape = (ROWS, COLUMNS)
    starts = range(0, ROWS, rows)
    blocks = [file.read_rows('some.weight', shape, at, min(at + rows, ROWS)) for at in starts]
    return np.concatenate(blocks)


# Maximum distance between adjacent quantized values of a block of 32, relative to the block's
# largest value. Half of it bounds the error, except for rounding a block's scale and minimum to
# 16-bit floats.
STEPS = {
    'F32': 0.0,
    'F16': 2**-10,
    'BF16': 2**-7,
    'Q8_0': 1 / 127,
    'Q5_0': 1 / 16,
    'Q5_1': 2 / 31,
    'Q4_0': 1 / 8,
    'Q4_1': 2 / 15,
}


@pytest.mark.parametrize('rows', [1, 16, 20, 64])
@pytest.mark.parametrize('kind', STEPS)
def test_round_trip(tmp_path, kind, rows):
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    stored = gguf.quantize(weight, KINDS[kind])
    found = read(write(tmp_path / 'one.gguf', kind, stored), rows)
    assert found.shape == weight.shape and found.dtype == np.float32
    largest = np.abs(weight.reshape(ROWS, -1, 32)).max(axis=-1, keepdims=True)
    error = np.abs(found - weight).reshape(ROWS, -1, 32) / largest
    # In the symmetric types, the most negative value has no positive counterpart: there, the error
    # may be a whole step.
    whole = 1.0 if kind in ('Q5_0', 'Q4_0') else 0.5
    rounding = 2**-10 if kind.startswith('Q') else 0.0
    assert error.max() <= whole * STEPS[kind] + rounding
    assert error.max() >= 0.2 * STEPS[kind], 'or it is stored better than that'


# Reference decoders of one super-block: 256 values from its bytes.


def half(data: bytes) -> float:
    return float(np.frombuffer(data, np.float16)[0])


def scales_and_minima(packed: bytes) -> list[tuple[int, int]]:
    """Return the eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes."""
    found = []
    for j in range(8):
        if j < 4:
            found.append((packed[j] & 63, packed[j + 4] & 63))
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4
            found.append((scale, packed[j + 4] >> 4 | (packed[j] >> 6) << 4))
    return found


def q4_k(block: bytes, high: bytes | None = None) -> list[float]:
    d, dmin, packed, low = half(block[:2]), half(block[2:4]), block[4:16], block[-128:]
    values = []
    for j, (scale, minimum) in enumerate(scales_and_minima(packed)):
        for i in range(32):
            quant = low[j // 2 * 32 + i] >> 4 * (j % 2) & 15
            if high is not None:
                quant += (high[i] >> j & 1) << 4
            values.append(d * scale * quant - dmin * minimum)
    return values


def q5_k(block: bytes) -> list[float]:
    return q4_k(block, high=block[16:48])


def q6_k(block: bytes) -> list[float]:
    low, high = block[:128], block[128:192]
    scales, d = np.frombuffer(block[192:208], np.int8).astype(int), half(block[208:])
    values = []
    for place in range(256):
        part, rest = divmod(place, 128)
        quarter, i = divmod(rest, 32)
        nibble = low[64 * part + 32 * (quarter % 2) + i] >> 4 * (quarter // 2) & 15
        quant = nibble | (high[32 * part + i] >> 2 * quarter & 3) << 4
        values.append(d * int(scales[place // 16]) * (quant - 32))
    return values


def random_bytes(size: int, halves: list[int]) -> np.ndarray:
    """Return super-blocks of random bytes, with plausible 16-bit floats at some places."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (ROWS, COLUMNS // 256, size), np.uint8)
    for place in halves:
        scale = rng.uniform(0.001, 0.1, (ROWS, COLUMNS // 256, 1)).astype(np.float16)
        blocks[..., place : place + 2] = scale.view(np.uint8)
    return blocks


@pytest.mark.parametrize('rows', [1, 20, 64])
@pytest.mark.parametrize(
    'kind, decode, size, halves',
    [
        ('Q4_K', q4_k, 144, [0, 2]),
        ('Q5_K', q5_k, 176, [0, 2]),
        ('Q6_K', q6_k, 210, [208]),
    ],
)
def test_k_quants(tmp_path, kind, decode, size, halves, rows):
    blocks = random_bytes(size, halves)
    expected = [[decode(block.tobytes()) for block in row] for row in blocks]
    expected = np.array(expected).reshape(ROWS, COLUMNS)
    file = write(tmp_path / 'one.gguf', kind, blocks.reshape(ROWS, -1))
    np.testing.assert_allclose(read(file, rows), expected, rtol=1e-6, atol=1e-5)


def test_what_the_package_cannot_read(tmp_path):
    stored = np.zeros((ROWS, COLUMNS), np.int8)
    writer = gguf.GGUFWriter(tmp_path / 'one.gguf', 'llama')
    writer.add_tensor('some.weight', stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / 'one.gguf')
    with pytest.raises(UserError) as caught:
        read(file, 8)
    assert str(caught.value) == (
        f"{file.path}: tensor 'some.weight' is stored as I8, which the gguf package cannot read."
    )

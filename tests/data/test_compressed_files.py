"""Files that may be compressed with gzip, bzip2 or Zstandard."""

import bz2
import gzip

import pyarrow
import pytest

from malora_jax.data.compressed_files import is_compressed, open_decompressed
from malora_jax.errors import UserError

TEXT = ''.join(
    f'{{"id": "{number}", "title": "é", "text": "文"}}\n' for number in range(2000)
).encode()


def zstandard(content):
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, 'zstd') as compressed:
        compressed.write(content)
    return stream.getvalue().to_pybytes()


FORMATS = {
    '.gz': (gzip.compress, 'gzip'),
    '.bz2': (bz2.compress, 'bzip2'),
    '.zst': (zstandard, 'Zstandard'),
}


@pytest.mark.parametrize('suffix', FORMATS)
def test_files_are_decompressed(tmp_path, suffix):
    compress, _ = FORMATS[suffix]
    path = tmp_path / f'a.jsonl{suffix.upper()}'
    half = len(TEXT) // 2
    for content in (compress(TEXT), compress(TEXT[:half]) + compress(TEXT[half:])):
        path.write_bytes(content)
        with open_decompressed(path) as file:
            assert b''.join(file) == TEXT
    assert is_compressed(path)


def test_other_files_are_read_as_they_are(tmp_path):
    path = tmp_path / 'a.gz.jsonl'
    path.write_bytes(TEXT)
    assert not is_compressed(path)
    with open_decompressed(path) as file:
        assert file.read() == TEXT


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_file_that_is_truncated_or_something_else(tmp_path, suffix):
    compress, name = FORMATS[suffix]
    path = tmp_path / f'a{suffix}'
    for content in (compress(TEXT)[:-20], b'{"id": "1"}\n' * 9):
        path.write_bytes(content)
        with (
            pytest.raises(UserError, match=rf'a\{suffix} is not a complete {name} file \('),
            open_decompressed(path) as file,
        ):
            file.read()

"""Decoding benchmark: llama.cpp gets the same weights, and the table shows the measurements."""

import gguf
import numpy as np
import pytest

from experiments.peers import decoding
from malora_jax.models import preset
from malora_jax.models.loading.base_model import load_base
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)


@pytest.mark.parametrize('kind', ['float32', 'float16'])
def test_a_dequantised_file_is_the_same_model(tmp_path, kind):
    source, target = tmp_path / 'q8.gguf', tmp_path / f'{kind}.gguf'
    write_tiny_gguf(source)
    decoding._write_dequantized(source, target, kind)
    tolerance = 0 if kind == 'float32' else 1e-3
    ours, theirs = (load_base(preset('tiny'), str(path)) for path in (source, target))
    for path, leaf in (('embedding', None), ('layers', 'mlp')):
        a, b = ours.params[path], theirs.params[path]
        if leaf:
            a, b = a[leaf]['down']['kernel'], b[leaf]['down']['kernel']
        np.testing.assert_allclose(a, b, atol=tolerance)
    assert ours.tokenizer.tokenizer_json == theirs.tokenizer.tokenizer_json
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}
    assert kinds == ({'F32'} if kind == 'float32' else {'F16', 'F32'})


def test_the_table_has_ratios_of_medians_and_says_where_texts_part():
    ours = [('abcd', 10.0), ('abcd', 30.0), ('abcd', 20.0)]
    table = decoding._table({'ours': ours, 'theirs': [('abxd', 40.0)]})
    first, second = table.splitlines()[2:]
    assert first == '| ours | 20.0 | 15.0–25.0 | 1.00 | 4 of 4 characters |'
    assert second == '| theirs | 40.0 | 40.0–40.0 | 0.50 | 2 of 4 characters |'

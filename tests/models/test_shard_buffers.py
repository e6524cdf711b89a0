"""Loading only the local parts of leaves, as in multi-process runs (see tests/distributed)."""

import numpy as np
from safetensors.numpy import save_file

from malora_jax.models import preset
from malora_jax.models.loading import params as params_lib
from malora_jax.models.loading.params import load_params, to_huggingface
from malora_jax.models.loading.safetensors_files import SafetensorsFiles
from malora_jax.models.loading.shard_buffers import ShardBuffers
from tests.helpers.models import random_variables, tiny_model


class Here:
    """A fake sharding with these parts on local devices."""

    def __init__(self, indices):
        self._indices = indices

    def addressable_devices_indices_map(self, _):
        return dict(enumerate(self._indices))


def test_wanted_is_what_a_device_here_has():
    parts = ShardBuffers(
        (6, 8), np.float32, Here([(slice(0, 2), slice(4, 8)), (slice(None, 2), slice(None))])
    )
    for start, stop, wanted in ((0, 1, True), (1, 3, True), (2, 6, False)):
        assert parts.overlaps(0, start, stop) == wanted
    parts = ShardBuffers((6, 8), np.float32, Here([(slice(0, 6), slice(6, 8))]))
    for start, stop, wanted in ((0, 6, False), (5, 7, True), (7, 8, True)):
        assert parts.overlaps(1, start, stop) == wanted


def test_rows_of_which_no_part_is_here_are_not_read(tmp_path, monkeypatch):
    """Local parts: outputs 4 and up of each `o`, and the embedding of the first two tokens."""
    config = preset('tiny')
    params = random_variables(tiny_model())['params']
    save_file(to_huggingface(config, params), tmp_path / 'model.safetensors')
    monkeypatch.setattr(params_lib, '_BLOCK_SIZE', 2 * config.width)
    wanted = {
        'layers/attention/o/kernel': Here([(slice(None), slice(None), slice(4, None))]),
        'embedding': Here([(slice(0, 2), slice(None))]),
    }

    class Some(ShardBuffers):
        def array(self):
            (array,) = self._arrays.values()
            return array

    def parts(config, path, shape, dtype):
        return Some(shape, dtype, wanted.get(path))

    read = []

    class File(SafetensorsFiles):
        def read_rows(self, name, shape, start, stop):
            read.append((name, start, stop))
            return super().read_rows(name, shape, start, stop)

    monkeypatch.setattr(params_lib, '_shard_buffers', parts)
    found = load_params(File(tmp_path), config)
    kernel = np.asarray(params['layers']['attention']['o']['kernel'])
    np.testing.assert_array_equal(found['layers']['attention']['o']['kernel'], kernel[..., 4:])
    np.testing.assert_array_equal(found['embedding'], params['embedding'][:2])
    # Each tensor's first row is read to find its shape.
    spans = [span for name, *span in read if 'o_proj' in name and span != [0, 1]]
    assert spans and min(start for start, _ in spans) >= 4
    assert [span for name, *span in read if 'embed' in name] == [[0, 1], [0, 2]]

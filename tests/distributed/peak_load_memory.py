"""Measure the memory that two processes need to load a checkpoint of a billion parameters.

`python -m tests.distributed.peak_load_memory [PRESET]` writes random bfloat16 weights (2.5 GB). It
loads them in one process, and in two that share them with FSDP. It prints each process's peak
private memory, next to the size of its parameters. Pages of the memory-mapped file do not count,
because the system may drop them.
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from malora_jax.distributed import hosts
from malora_jax.distributed.mesh import MeshConfig, make_mesh
from malora_jax.models import ModelConfig, preset
from malora_jax.models.loading import tensor_names
from malora_jax.models.loading.params import load_params
from malora_jax.models.loading.safetensors_files import SafetensorsFiles
from tests.helpers.paths import ROOT


def write(config: ModelConfig, path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.random(leaf.tensor_shape, np.float32) - 0.5).astype(ml_dtypes.bfloat16)
        for leaf in tensor_names.leaves(config, 'huggingface')
        for name in leaf.tensor_names
    }
    save_file(tensors, path / 'model.safetensors')


class PeakMemory:
    """Peak private memory of this process in bytes, sampled every 5 ms."""

    def __init__(self):
        self.bytes = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            lines = pathlib.Path('/proc/self/status').read_text().splitlines()
            anonymous = next(line for line in lines if line.startswith('RssAnon'))
            self.bytes = max(self.bytes, 1024 * int(anonymous.split()[1]))
            time.sleep(0.005)


def measure_loading(config: ModelConfig, path: str, port: str, processes: str, number: str) -> None:
    if int(processes) > 1:
        hosts.initialize(f'127.0.0.1:{port}', int(processes), int(number))
    peak = PeakMemory()
    mesh = make_mesh(MeshConfig(fsdp=int(processes)), jax.devices())
    with jax.set_mesh(mesh):
        time.sleep(0.1)
        before, began = peak.bytes, time.perf_counter()
        params = load_params(SafetensorsFiles(path), config)
        seconds = time.perf_counter() - began
        here = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(params)
            for shard in leaf.addressable_shards
        )
    print(
        f'Process {number} of {processes}: parameters {here / 1e9:.2f} GB, '
        f'peak {(peak.bytes - before) / 1e9:.2f} GB, {seconds:.1f} s'
    )
    hosts.barrier('read')


def main(name: str = 'llama3.2-1b', *rest: str) -> None:
    config = dataclasses.replace(preset(name), dtype='bfloat16')
    if rest:
        measure_loading(config, *rest)
        return
    with tempfile.TemporaryDirectory() as made:
        write(config, pathlib.Path(made))
        for processes in (1, 2):
            command = [sys.executable, '-m', 'tests.distributed.peak_load_memory', name, made]
            command += ['29817', str(processes)]
            started = [
                subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(processes)
            ]
            assert not any(each.wait() for each in started)


if __name__ == '__main__':
    main(*sys.argv[1:])

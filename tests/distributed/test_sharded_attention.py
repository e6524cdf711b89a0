"""Attention kernels on meshes compute the value and the gradients of a single device."""

import json
import subprocess
import sys

import pytest

from malora_jax.benchmark.attention_check import TOLERANCES
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.devices


def test_kernels_on_meshes():
    done = subprocess.run(
        [sys.executable, '-m', 'tests.distributed.sharded_attention'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for backend, meshes in json.loads(done.stdout.splitlines()[-1]).items():
        for mesh, errors in meshes.items():
            assert max(errors.values()) < TOLERANCES[backend, 'float32'], (backend, mesh, errors)

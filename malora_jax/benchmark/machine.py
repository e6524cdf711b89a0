"""Description of the machine on which a benchmark was measured."""

import os
import pathlib
import platform
from typing import Any

import jax

from malora_jax.training.workdir import package_versions


def machine() -> dict[str, Any]:
    """Return the device, the processor and the package versions that affect measured times."""
    device = jax.devices()[0]
    return {
        'device': device.device_kind,
        'platform': device.platform,
        'processor': _processor(),
        'cores': num_cores(),
        'system': platform.system(),
        'versions': package_versions(),
    }


def num_cores() -> int:
    """Return the number of CPU cores that this process may use.

    XLA starts one thread per core. If the operating system does not report the cores of a process,
    the number is that of the machine.
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    path = pathlib.Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()

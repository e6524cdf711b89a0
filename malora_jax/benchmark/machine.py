"""What something was measured on."""

import os
import pathlib
import platform
from typing import Any

import jax

from malora_jax.training.workdir import versions


def machine() -> dict[str, Any]:
    """The device, the processor and the versions that decide a time."""
    device = jax.devices()[0]
    return {
        'device': device.device_kind,
        'platform': device.platform,
        'processor': _processor(),
        'cores': cores(),
        'system': platform.system(),
        'versions': versions(),
    }


def cores() -> int:
    """Those that this process may use, where the system says; XLA starts a thread on each."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    path = pathlib.Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()

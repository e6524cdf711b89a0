"""How many runs fit into the device's memory together, and what a compiled step takes of it."""

import os
import pathlib
import re
from typing import Any

import jax

from malora_jax.models import Decoder
from malora_jax.training.config import RunConfig
from malora_jax.training.fit import USABLE, option
from malora_jax.training.plan import memory_bytes

_MEMINFO = pathlib.Path('/proc/meminfo')


def available() -> int:
    """Bytes that runs may take: of the device; on CPU what is free, or half of all there is."""
    stats = jax.devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    if _MEMINFO.exists():
        found = re.search(r'^MemAvailable: +(\d+) kB$', _MEMINFO.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2


def that_fit(run: RunConfig, memory: int) -> int:
    """How many runs that are alike fit together, with one copy of the base.

    Args:
        run: what they share, as `traced.common` has it.
        memory: bytes of the device, of which a tenth stays free.
    """
    base = memory_bytes(Decoder(run.model))['base']
    each = option(run, memory, run.model.quantize, run.training.remat)
    own = each.resident - base + each.step + each.row * run.data.batch_size
    return max(0, (int(memory * USABLE) - base) // own)


def step_bytes(compiled: Any) -> int:
    """What the compiler says that a step takes, with base, states and rows."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )

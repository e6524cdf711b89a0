"""What fits into a device's memory: how the base is kept, what is computed anew, how many rows.

Nothing is compiled or allocated: what a row takes is what JAX would keep for the backward pass, by
its shapes. A test holds the sum against the compiler's.
"""

import dataclasses
import functools
import os
import pathlib
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from malora_jax import errors, markdown
from malora_jax.models import Decoder, ModelConfig
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.config import RunConfig
from malora_jax.training.objective import CHUNK
from malora_jax.training.plan import memory_bytes, tree_bytes
from malora_jax.training.step import abstract_batch, losses

# nf4 takes as much as int4.
_KEPT = ('', 'int8', 'int4')
_REMAT = ('light', 'full')
# A tenth stays free: for the runtime, and for what fragments.
USABLE = 0.9
_MEMINFO = pathlib.Path('/proc/meminfo')
_UNITS = {'MB': 10**6, 'GB': 10**9, 'MiB': 2**20, 'GiB': 2**30}


class Option(NamedTuple):
    """A way to train in a given memory.

    Attributes:
        kept: how the base's kernels are: a dtype, or a way to quantise.
        quantize: the same as `model.quantize`.
        remat: what is computed anew.
        resident: bytes that stay allocated: base, adapter, moments.
        step: bytes that a step takes besides, whatever its rows: gradients, their update, a chunk
            of logits, and a kernel in numbers if they are quantised.
        row: bytes of each row: what is kept of it, and what one layer makes of it.
        rows: the most rows; 0 = not even one fits.
    """

    kept: str
    quantize: str
    remat: str
    resident: int
    step: int
    row: int
    rows: int

    @property
    def total(self) -> int:
        """Bytes with the most rows, or with one if none fits."""
        return self.resident + self.step + self.row * max(1, self.rows)


def memory_size(text: str) -> int:
    """Bytes of what '24GB' or '16GiB' says.

    Raises:
        UserError: it says something else.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?(MB|GB|MiB|GiB)', text.strip())
    if not found or not float(found[1]):
        raise errors.out_of_range('--memory', text, 'a size such as 24GB or 16GiB')
    return int(float(found[1]) * _UNITS[found[2]])


def options(run: RunConfig, memory: int) -> list[Option]:
    """Each way to keep the base with each rematerialisation.

    Args:
        run: model, method, length of a row; the rest is varied.
        memory: bytes of the device.
    """
    return [option(run, memory, kept, remat) for kept in _KEPT for remat in _REMAT]


def option(run: RunConfig, memory: int, quantize: str, remat: str) -> Option:
    """One of them.

    Args:
        run: as for `options`.
        memory: likewise.
        quantize: how the base is kept, as in `model.quantize`.
        remat: what is computed anew.
    """
    config = dataclasses.replace(run.model, quantize=quantize)
    parts = memory_bytes(Decoder(config, run.adapter))
    resident = parts['total'] - parts['gradients']
    # Gradients and their update, and with micro-batches their sum.
    copies = 2 if run.training.accumulate == 1 else 3
    step = copies * parts['gradients'] + _logits(config) + _kernel(config)
    # The same however the base is kept.
    row = row_bytes(Decoder(run.model, run.adapter, remat), run.data.sequence_length)
    rows = max(0, (int(memory * USABLE) - resident - step) // row)
    return Option(quantize or config.dtype, quantize, remat, resident, step, row, rows)


def available_memory() -> int:
    """Return the bytes that runs may take: of the device; on CPU the free ones, or half of all."""
    stats = jax.devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    if _MEMINFO.exists():
        found = re.search(r'^MemAvailable: +(\d+) kB$', _MEMINFO.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2


def joint_runs(run: RunConfig, memory: int) -> int:
    """Return how many runs fit into memory jointly, with one copy of the base.

    Args:
        run: Config of one of them, with the largest ranks.
        memory: Bytes of the device, of which a tenth stays free.
    """
    base = memory_bytes(Decoder(run.model))['base']
    each = option(run, memory, run.model.quantize, run.training.remat)
    own = each.resident - base + each.step + each.row * run.data.batch_size
    return max(0, (int(memory * USABLE) - base) // own)


@functools.cache
def row_bytes(model: Decoder, sequence_length: int) -> int:
    """What a row of a batch takes.

    What the backward pass has of all layers; and all that one layer makes, which it makes anew,
    with gradients of about half of that.
    """
    layer = Decoder(dataclasses.replace(model.config, num_layers=1), model.adapter)
    kept = _kept(model, 2, sequence_length) - _kept(model, 1, sequence_length)
    made = _kept(layer, 2, sequence_length) - _kept(layer, 1, sequence_length)
    return kept + made * 3 // 2


def describe(run: RunConfig, found: list[Option], memory: int) -> str:
    """A table of all options, and which one to take."""
    head = ['kernels', 'remat', 'stays, GB', 'a step, GB', 'a row, GB', 'most rows', 'total, GB']
    rows = [
        [
            *(option.kept, option.remat),
            *(f'{size / 1e9:.2f}' for size in (option.resident, option.step, option.row)),
            str(option.rows),
            f'{option.total / 1e9:.2f}',
        ]
        for option in found
    ]
    title = (
        f'{run.method} on {run.model.name} in {run.model.dtype}, rows of '
        f'{run.data.sequence_length} tokens, {memory / 1e9:.1f} GB of which a tenth stays free.'
    )
    return f'{title}\n\n{markdown.table([head, *rows])}\n\n{_advice(run, found)}'


def _advice(run: RunConfig, found: list[Option]) -> str:
    """The most exact base that leaves room for the batch, and the least computed anew."""
    wanted = run.data.batch_size
    for option in found:
        if option.rows >= wanted:
            return (
                f"A batch of {wanted} fits with --config.model.quantize='{option.quantize}' "
                f'--config.training.remat={option.remat}, and up to {option.rows} would.'
            )
    best = max(found, key=lambda option: option.rows)
    if best.rows:
        return (
            f"No batch of {wanted} fits. --config.model.quantize='{best.quantize}' "
            f'--config.training.remat={best.remat} --config.data.batch_size={best.rows} does, and '
            'training.accumulate makes steps of more.'
        )
    return 'Not even one row fits: make data.sequence_length or the adapter smaller.'


def _kept(model: Decoder, rows: int, sequence_length: int) -> int:
    """Bytes that JAX keeps for the backward pass; weights too, as often as they are needed."""

    def backward(variables: Any, batch: Any, key: jax.Array) -> Any:
        def loss(adapter: Any) -> jax.Array:
            return losses(model, variables | {'adapter': adapter}, batch, 1, key).nll.sum()

        return jax.vjp(loss, variables['adapter'])[1]

    variables = nn.unbox(abstract_variables(model))
    batch = abstract_batch(rows, sequence_length)
    return tree_bytes(jax.eval_shape(backward, variables, batch, jax.random.key(0)))


def _logits(config: ModelConfig) -> int:
    """A chunk's logits, their exponentials and their softmax, float32."""
    return 3 * 4 * CHUNK * config.vocab_size


def _kernel(config: ModelConfig) -> int:
    """The largest kernel as float32 and in the model's dtype, where kernels are quantised."""
    if not config.quantize:
        return 0
    largest = config.width * max(config.hidden, config.num_heads * config.head_width)
    return largest * (4 + jax.numpy.dtype(config.dtype).itemsize)

"""Estimate of the batch size that fits into device memory, by quantization and rematerialization.

Nothing is compiled or allocated. The memory of a row is the size of the activations that JAX would
save for the backward pass, from abstract evaluation. A test compares the total with the compiler's
memory analysis.
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
from malora_jax.training.objective import CHUNK_TOKENS
from malora_jax.training.plan import memory_bytes, tree_bytes
from malora_jax.training.step import abstract_batch, losses

# Quantization formats to compare. nf4 is omitted because it takes as much memory as int4.
_QUANTIZE = ('', 'int8', 'int4')
_REMAT = ('light', 'full')
# Usable share of the memory. The rest is for the runtime and for fragmentation.
USABLE_SHARE = 0.9
_MEMINFO = pathlib.Path('/proc/meminfo')
_UNITS = {'MB': 10**6, 'GB': 10**9, 'MiB': 2**20, 'GiB': 2**30}


class MemoryEstimate(NamedTuple):
    """Memory use with one combination of quantization and rematerialization.

    Attributes:
        kernel_format: Name of the dtype or quantization format of the base model's kernels, for the
            table.
        quantize: Value of `model.quantize`; '' = not quantized.
        remat: Value of `training.remat`, the rematerialization policy.
        resident_bytes: Bytes that stay allocated during training: base, adapter and optimizer
            moments.
        step_bytes: Additional bytes of a step that do not depend on its rows: gradients, their
            update, a chunk of logits, and one dequantized kernel if kernels are quantized.
        row_bytes: Bytes of each row: its saved activations, and the temporaries of one layer.
        max_rows: Maximum number of rows; 0 = not even one fits.
    """

    kernel_format: str
    quantize: str
    remat: str
    resident_bytes: int
    step_bytes: int
    row_bytes: int
    max_rows: int

    @property
    def total_bytes(self) -> int:
        """Total bytes with the maximum number of rows, or with one row if none fits."""
        return self.resident_bytes + self.step_bytes + self.row_bytes * max(1, self.max_rows)


def parse_memory_size(text: str) -> int:
    """Parse a memory size, and return its bytes.

    Args:
        text: Number with a unit, such as '24GB' or '16GiB'.

    Raises:
        UserError: The text is not a positive size with unit MB, GB, MiB or GiB.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?) ?(MB|GB|MiB|GiB)', text.strip())
    if not match or not float(match[1]):
        raise errors.out_of_range('--memory', text, 'a size such as 24GB or 16GiB')
    return int(float(match[1]) * _UNITS[match[2]])


def memory_estimates(run: RunConfig, memory: int) -> list[MemoryEstimate]:
    """Estimate the memory of training, for each combination of quantization and rematerialization.

    Args:
        run: Run configuration. Its quantization, rematerialization and batch size are ignored.
        memory: Memory of the device, in bytes; it determines the largest batch that fits.
    """
    return [memory_estimate(run, memory, kept, remat) for kept in _QUANTIZE for remat in _REMAT]


def memory_estimate(run: RunConfig, memory: int, quantize: str, remat: str) -> MemoryEstimate:
    """Estimate the memory of training, for one choice of quantization and rematerialization.

    Args:
        run: Run configuration. Its quantization, rematerialization and batch size are ignored.
        memory: Memory of the device, in bytes; it determines the largest batch that fits.
        quantize: Quantization format of the base model's kernels, as in `model.quantize`.
        remat: Rematerialization policy, as in `training.remat`.
    """
    config = dataclasses.replace(run.model, quantize=quantize)
    parts = memory_bytes(Decoder(config, run.adapter))
    resident = parts['total'] - parts['gradients']
    # Gradients and updates, and with gradient accumulation also the sum of the gradients.
    copies = 2 if run.training.accumulate == 1 else 3
    step = copies * parts['gradients'] + _logit_bytes(config) + _kernel_bytes(config)
    # The memory of a row does not depend on the quantization. With `run.model` instead of `config`,
    # all quantization formats share one cached result.
    row = row_bytes(Decoder(run.model, run.adapter, remat, run.attention), run.data.sequence_length)
    rows = max(0, (int(memory * USABLE_SHARE) - resident - step) // row)
    return MemoryEstimate(quantize or config.dtype, quantize, remat, resident, step, row, rows)


def available_memory() -> int:
    """Return the memory that runs may use, in bytes.

    This is the limit of the first device. Without such a limit, as on CPU, it is the available
    memory of the host, or half of the host's memory if that is not known.
    """
    stats = jax.devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    if _MEMINFO.exists():
        match = re.search(r'^MemAvailable: +(\d+) kB$', _MEMINFO.read_text(), re.MULTILINE)
        if match:
            return 1024 * int(match[1])
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2


def max_joint_runs(run: RunConfig, memory: int) -> int:
    """Return the number of runs that fit into memory if they train jointly, sharing one base model.

    Args:
        run: Run configuration with the largest ranks among the runs. Each run is assumed to need as
            much memory as this one.
        memory: Memory of the device, in bytes; a tenth of it stays free.
    """
    base = memory_bytes(Decoder(run.model))['base']
    each = memory_estimate(run, memory, run.model.quantize, run.training.remat)
    own = each.resident_bytes - base + each.step_bytes + each.row_bytes * run.data.batch_size
    return max(0, (int(memory * USABLE_SHARE) - base) // own)


def row_bytes(model: Decoder, sequence_length: int) -> int:
    """Return the memory of one row of a batch, in bytes.

    The backward pass needs two kinds of arrays: the saved activations of all layers, and the
    temporary arrays of one layer. The temporary arrays are the recomputed activations of the layer
    and their gradients. Most gradients replace activations that are no longer needed; the others
    take about a sixth as much memory as these activations.

    Args:
        model: Decoder with its adapter and its rematerialization policy.
        sequence_length: Number of tokens of a row, T.
    """
    layer = Decoder(dataclasses.replace(model.config, num_layers=1), model.adapter)
    saved = _saved_bytes(model, 2, sequence_length) - _saved_bytes(model, 1, sequence_length)
    recomputed = _saved_bytes(layer, 2, sequence_length) - _saved_bytes(layer, 1, sequence_length)
    return saved + recomputed * 7 // 6


def format_estimates(run: RunConfig, estimates: list[MemoryEstimate], memory: int) -> str:
    """Return a Markdown table of the estimates, and a recommendation.

    Args:
        run: Run configuration.
        estimates: Estimates, as `memory_estimates` returns them.
        memory: Memory of the device, in bytes; it determines the largest batch that fits.
    """
    head = ['kernels', 'remat', 'resident GB', 'GB per step', 'GB per row', 'max rows', 'total GB']
    rows = [
        [
            *(estimate.kernel_format, estimate.remat),
            *(
                f'{size / 1e9:.2f}'
                for size in (estimate.resident_bytes, estimate.step_bytes, estimate.row_bytes)
            ),
            str(estimate.max_rows),
            f'{estimate.total_bytes / 1e9:.2f}',
        ]
        for estimate in estimates
    ]
    title = (
        f'{run.method} on {run.model.name} in {run.model.dtype}, rows of '
        f'{run.data.sequence_length} tokens, {memory / 1e9:.1f} GB of which a tenth stays free.'
    )
    return f'{title}\n\n{markdown.table([head, *rows])}\n\n{_advice(run, estimates)}'


def _advice(run: RunConfig, estimates: list[MemoryEstimate]) -> str:
    """Return the recommendation: the first estimate with which the configured batch fits.

    The estimates come in order of preference. A more precise base model comes first; with equal
    precision, less recomputation comes first.
    """
    batch_size = run.data.batch_size
    for estimate in estimates:
        if estimate.max_rows >= batch_size:
            return (
                f"A batch of {batch_size} fits with --config.model.quantize='{estimate.quantize}' "
                f'--config.training.remat={estimate.remat}; the maximum batch size is '
                f'{estimate.max_rows}.'
            )
    best = max(estimates, key=lambda estimate: estimate.max_rows)
    if best.max_rows:
        return (
            f"A batch of {batch_size} does not fit. --config.model.quantize='{best.quantize}' "
            f'--config.training.remat={best.remat} --config.data.batch_size={best.max_rows} fits; '
            'for more rows per step, raise training.accumulate.'
        )
    return 'Not even one row fits: make data.sequence_length or the adapter smaller.'


# Shared by quantization formats, and the recomputed layer also by rematerialization policies.
@functools.cache
def _saved_bytes(model: Decoder, rows: int, sequence_length: int) -> int:
    """Return the bytes of the arrays that JAX saves for the backward pass.

    The saved arrays include weights, whose size does not depend on the number of rows. Callers
    subtract the bytes for one row from the bytes for two rows, which removes the weights.
    """
    num_tasks = max(1, len(model.adapter.tasks if model.adapter else ()))

    def backward(variables: Any, batch: Any, key: jax.Array) -> Any:
        def loss(adapter: Any) -> jax.Array:
            now = variables | {'adapter': adapter}
            return losses(model, now, batch, num_tasks, key).nll.sum()

        return jax.vjp(loss, variables['adapter'])[1]

    variables = nn.unbox(abstract_variables(model))
    batch = abstract_batch(rows, sequence_length)
    return tree_bytes(jax.eval_shape(backward, variables, batch, jax.random.key(0)))


def _logit_bytes(config: ModelConfig) -> int:
    """Return the bytes that the output head needs for the tokens that it processes at once.

    These are the logits, their exponentials and their softmax, in float32.
    """
    return 3 * 4 * CHUNK_TOKENS * config.vocab_size


def _kernel_bytes(config: ModelConfig) -> int:
    """Return the bytes of the largest kernel while it is dequantized; 0 if not quantized.

    Dequantization holds the kernel in float32 and in the model's dtype.
    """
    if not config.quantize:
        return 0
    largest = config.width * max(config.hidden, config.num_heads * config.head_width)
    return largest * (4 + jax.numpy.dtype(config.dtype).itemsize)

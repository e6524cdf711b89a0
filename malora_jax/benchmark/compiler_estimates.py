"""Compiler estimates for one layer, without a TPU or GPU: cycles, memory and operations.

This needs the package `libtpu`, or JAX's plugin for CUDA. Use the estimates for ratios between
methods; they do not predict times in seconds. The GPU compiler estimates only the memory; instead
of cycles, the kernels of the program are counted.

Dimension letters: B rows, T positions, N = B · T tokens, D model width, G tasks.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from malora_jax import errors, markdown
from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.low_rank import RECORDED_COLLECTIONS
from malora_jax.benchmark.input_batches import SYNTHETIC_TASKS
from malora_jax.distributed import hlo
from malora_jax.distributed.topology import get_topology
from malora_jax.models.context import Context
from malora_jax.models.decoder import REMAT_POLICIES, Block
from malora_jax.training.config import RunConfig


def estimate_layer(
    run: RunConfig, adapters: Mapping[str, AdapterConfig | None], topology: str
) -> dict[str, dict[str, float]]:
    """Compile the forward and backward pass of one layer for one chip, with each adapter.

    The gradient is computed with respect to the trainable leaves and to the input of the layer, as
    for a layer in the middle of a model. Load-balancing losses are not included.

    Args:
        run: Run config; only the model, the attention backend, the shape of a batch and
            `training.remat` are used.
        adapters: Adapter configurations by name; None for the base model alone.
        topology: Name of a topology, such as 'v5e:2x2' or 'h100:1'.

    Returns:
        For each name: `cycles`, the estimated cycles, 0 without an estimate; `temporary_bytes`, the
        memory for intermediate results; `accessed_bytes`, the memory traffic; and `flops`, the
        number of floating-point operations. Cycles and FLOPs do not include an attention kernel.
        For GPUs only `temporary_bytes`, and `kernels`, the number of kernels.

    Raises:
        UserError: The topology is unknown, its compiler is not installed, or it rejects a layer,
            for example because the layer does not fit into memory.
    """
    device = get_topology(topology).devices[0]
    run, sharding = run.for_device(device), jax.sharding.SingleDeviceSharding(device)
    return {name: _estimate(run, adapter, sharding) for name, adapter in adapters.items()}


def _estimate(
    run: RunConfig, adapter: AdapterConfig | None, sharding: jax.sharding.Sharding
) -> dict[str, float]:
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _shapes(run, adapter),
    )
    lowered = jax.jit(functools.partial(_layer_gradient, run, adapter)).lower(*shapes)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise errors.UserError(f'The compiler rejects the layer: {reason}') from error
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    program = hlo.Program(compiled.as_text() or '')
    estimates = {'temporary_bytes': memory.temp_size_in_bytes}
    if not costs:  # A GPU that is not attached.
        return estimates | {'kernels': program.kernels()}
    return estimates | {
        'cycles': program.cycles(),
        'accessed_bytes': costs['bytes accessed'],
        'flops': costs['flops'],
    }


def _shapes(run: RunConfig, adapter: AdapterConfig | None) -> tuple[Any, ...]:
    """Return the shapes of the arguments of `_layer_gradient`.

    These are the trainable leaves, the other leaves, the layer's input (N, D), the cotangent of its
    output (N, D), and the segment ids (B, T). A row counts once for each sample of its experts.
    """
    samples = 1 if adapter is None else max(adapter.router.samples, 1)
    B, T = run.data.batch_size * samples, run.data.sequence_length
    x_ND = jax.ShapeDtypeStruct((B * T, run.model.width), run.model.dtype)
    segments_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
    variables = nn.unbox(
        jax.eval_shape(
            lambda x_ND, segments_BT: Block(run.model, adapter).init(
                jax.random.key(0), x_ND, _context(run, segments_BT, train=False), None
            ),
            x_ND,
            segments_BT,
        )
    )
    trained = variables.pop('adapter', {})
    for name in RECORDED_COLLECTIONS:
        variables.pop(name, None)
    return trained, variables, x_ND, x_ND, segments_BT


def _context(run: RunConfig, segments_BT: jax.Array, train: bool) -> Context:
    B, T = segments_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    num_tasks = len(SYNTHETIC_TASKS)
    groups_NG = jax.nn.one_hot(jnp.arange(B * T) % num_tasks, num_tasks)
    return Context(positions_BT, segments_BT, groups_NG, attention=run.attention, train=train)


def _layer_gradient(
    run: RunConfig, adapter: AdapterConfig | None, trained, others, x_ND, cotangent_ND, segments_BT
):
    """Return the gradient with respect to the trainable leaves and to the layer's input."""
    block = nn.remat(Block, policy=REMAT_POLICIES[run.training.remat])(run.model, adapter)

    def objective(trained, x_ND):
        (out_ND, _), recorded = block.apply(
            {**others, 'adapter': trained},
            x_ND,
            _context(run, segments_BT, train=True),
            None,
            rngs={'dropout': jax.random.key(0), 'selection': jax.random.key(1)},
            mutable=RECORDED_COLLECTIONS,
        )
        log_probabilities = jax.tree.leaves(recorded.get('selection', {}))
        product = jnp.vdot(out_ND.astype(jnp.float32), cotangent_ND.astype(jnp.float32))
        return product + sum(each.sum() for each in log_probabilities)

    return jax.grad(objective, argnums=(0, 1))(trained, x_ND)


def format_table(layer_estimates: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of the estimates.

    It has ratios of cycles to the base model and to LoRA if these are included.

    Args:
        layer_estimates: Result of `estimate_layer`.
    """
    if not all('cycles' in figures for figures in layer_estimates.values()):
        rows = [
            [name, f'{each["kernels"]:,}', f'{each["temporary_bytes"] / 1e6:,.0f}']
            for name, each in layer_estimates.items()
        ]
        return markdown.table([['', 'kernels', 'temporary, MB'], *rows])
    baselines = [name for name in ('base', 'lora') if name in layer_estimates]
    head = ['', 'cycles', *(f'× {name}' for name in baselines), 'temporary, MB', 'GFLOP']
    rows = [head]
    for name, figures in layer_estimates.items():
        cycles = figures['cycles']
        to_compare = [layer_estimates[baseline]['cycles'] for baseline in baselines]
        rows.append(
            [
                name,
                f'{cycles:,.0f}' if cycles else '–',
                *(f'{cycles / other:.3f}' if cycles and other else '–' for other in to_compare),
                f'{figures["temporary_bytes"] / 1e6:,.0f}',
                f'{figures["flops"] / 1e9:,.0f}',
            ]
        )
    return markdown.table(rows)

"""Attention backends: the choice between XLA and fused kernels, and how the kernels are called.

A fused kernel keeps the scores of a block on the chip, and skips the blocks above the diagonal.
Both kernels ship with JAX, mask by segment ids, and save only the output and the log-sum-exp of
each query's scores for the backward pass:

* `splash` is splash attention (TPU). Several query heads share a key head without copies.
* `triton` is the Pallas-Triton kernel of FlashAttention (NVIDIA GPUs of compute capability 8.0 or
  later). It has as many key heads as query heads; `jax.vmap` over the query heads of each key head
  avoids copies of the keys.

Two alternatives to `triton` were rejected. cuDNN has a packed layout, but only internal functions
of JAX accept it. It needs the maximum number of segments of a row at compile time, has no float32,
and cannot be interpreted on a CPU. tokamax would be another requirement, and its public function
takes no segment ids: a boolean mask would have T² entries per row.

Dimension letters: B batch, T sequence, H query heads, K key/value heads, G = H / K query heads per
key/value head, C head width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from malora_jax import errors
from malora_jax.distributed import sharding
from malora_jax.models import attention
from malora_jax.models.verified_kernels import VERIFIED_VERSIONS

BACKENDS = ('auto', 'xla', 'splash', 'triton')
# Head widths for which the kernels are tested.
HEAD_WIDTHS = (64, 128)
# Sequence lengths are padded to a multiple of the smallest block.
_BLOCK = 128
# Larger blocks of splash attention take fewer steps, but need more on-chip memory.
_SPLASH_BLOCKS = (512, 384, 256, _BLOCK)


class Choice(NamedTuple):
    """The attention backend of a run, with the reason for it.

    Attributes:
        backend: Name of the backend, one of `BACKENDS` other than 'auto'.
        reason: Text for the first lines of a run.
    """

    backend: str
    reason: str

    def __str__(self) -> str:
        return f'Attention backend: {self.backend} ({self.reason}).'


def choose(attention_field: str, head_width: int, device: Any) -> Choice:
    """Choose the attention backend for a device.

    With 'auto', a kernel is chosen only if it passed the tests with the installed version of JAX.

    Args:
        attention_field: Value of `model.attention`, one of `BACKENDS`.
        head_width: Width C of the model's heads.
        device: JAX device, which may be one of a topology for ahead-of-time compilation.

    Raises:
        UserError: The field names a kernel that does not run on the device or with this head width.
    """
    kernel, version = kernel_of(device), f'JAX {jax.__version__}'
    is_verified = jax.__version__ in VERIFIED_VERSIONS.get(kernel, ())
    if attention_field == 'xla':
        return Choice('xla', 'set by model.attention')
    if attention_field == 'auto':
        if not kernel:
            return Choice('xla', f'no kernel for {device.device_kind}')
        if head_width not in HEAD_WIDTHS:
            return Choice('xla', f'{kernel} is not tested with heads of width {head_width}')
        if not is_verified:
            return Choice('xla', f'{kernel} is not verified with {version}')
        return Choice(kernel, f'verified on a CPU with {version}')
    if attention_field != kernel:
        allowed = f"'auto', 'xla' or {kernel!r}" if kernel else "'auto' or 'xla'"
        raise errors.out_of_range(
            'model.attention', attention_field, f'{allowed} on {device.device_kind}'
        )
    if head_width not in HEAD_WIDTHS:
        allowed = f"'auto' or 'xla' for heads of width {head_width}"
        raise errors.out_of_range('model.attention', attention_field, allowed)
    status = 'verified on a CPU' if is_verified else 'not verified'
    return Choice(kernel, f'set by model.attention; {status} with {version}')


def kernel_of(device: Any) -> str:
    """Return the name of the kernel that runs on a device; '' if there is none."""
    if device.platform == 'tpu':
        return 'splash'
    # ROCm devices have names such as gfx90a instead of a number.
    major = str(getattr(device, 'compute_capability', '')).partition('.')[0]
    return 'triton' if major.isdigit() and int(major) >= 8 else ''


def attend(
    backend: str,
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    """Compute causal attention within the segments of packed rows.

    On a mesh, a kernel runs on each device's rows and heads. If the rows or the key heads cannot be
    split evenly, every device computes all of them.

    Args:
        backend: Backend, one of `BACKENDS`; 'auto' chooses one for the default device. Kernels need
            the mesh of `distributed.mesh.use_mesh` or a single device, so 'auto' chooses XLA on
            other meshes; set 'xla' if arrays are sharded without a mesh.
        q_BTHC: Queries after RoPE.
        k_BTKC: Keys after RoPE, each shared by H / K query heads.
        v_BTKC: Values.
        segments_BT: int32 segment (packed example) of each token. Padding is segment 0, and its
            tokens attend to each other.

    Returns:
        (B, T, H, C) in the dtype of q.
    """
    if backend == 'auto':
        is_other_mesh = not (sharding.is_mesh_set() or jax.sharding.get_abstract_mesh().empty)
        device = jax.devices()[0]
        backend = 'xla' if is_other_mesh else choose(backend, q_BTHC.shape[-1], device).backend
    if backend == 'xla':
        return attention.attend(q_BTHC, k_BTKC, v_BTKC, segments_BT)
    kernel = pad_to_blocks(KERNELS[backend])
    if sharding.is_mesh_set():
        # Query heads and key heads are split over the same mesh axis.
        heads = sharding.divisible_spec(k_BTKC.shape, ('rows', 'features', 'kv_heads', 'features'))
        rows = PartitionSpec(*heads[:2])
        # The kernels do not declare over which mesh axes their results vary.
        kernel = jax.shard_map(
            kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    return kernel(q_BTHC, k_BTKC, v_BTKC, segments_BT)


def pad_to_blocks(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a kernel that also accepts lengths that are not a multiple of its blocks.

    Args:
        kernel: One of `KERNELS`, whose sequence length must be a multiple of 128.
    """

    def padded(*arrays: jax.Array) -> jax.Array:
        length = arrays[0].shape[1]
        end = (0, -length % _BLOCK)
        # Padding is segment 0. It follows all other tokens, so none of them attends to it.
        return kernel(
            *(jnp.pad(x, [end if axis == 1 else (0, 0) for axis in range(x.ndim)]) for x in arrays)
        )[:, :length]

    return padded


def splash(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segments_BT: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Compute attention with the splash kernel, on a single TPU.

    Args:
        q_BTHC: Queries after RoPE; the length is a multiple of 128.
        k_BTKC: Keys after RoPE.
        v_BTKC: Values.
        segments_BT: int32 segment of each token.
        interpret: Whether the kernel is interpreted, which works on every device.

    Returns:
        (B, T, H, C) in the dtype of q.
    """
    # Imported here because the import takes a second, and only TPUs use the kernel.
    from jax.experimental.pallas.ops.tpu import splash_attention

    T, H, C = q_BTHC.shape[1:]
    block = next(size for size in _SPLASH_BLOCKS if T % size == 0)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((T, T))] * H),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        # See `decoder.REMAT_POLICIES`.
        residual_checkpoint_name='attended',
        interpret=interpret,
    )
    # Scaled in float32, so that the scale is not rounded to bfloat16.
    q_BTHC = (q_BTHC.astype(jnp.float32) * C**-0.5).astype(q_BTHC.dtype)
    q_BHTC, k_BKTC, v_BKTC = (x.swapaxes(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    segment_ids = splash_attention.SegmentIds(segments_BT, segments_BT)
    return jax.vmap(kernel)(q_BHTC, k_BKTC, v_BKTC, segment_ids).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def triton(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKC: jax.Array,
    segments_BT: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Compute attention with the Pallas-Triton kernel, on a single NVIDIA GPU.

    Args:
        q_BTHC: Queries after RoPE; the length is a multiple of 128.
        k_BTKC: Keys after RoPE.
        v_BTKC: Values.
        segments_BT: int32 segment of each token.
        interpret: Whether the kernel is interpreted, which works on every device.

    Returns:
        (B, T, H, C) in the dtype of q.
    """
    return _triton_forward(q_BTHC, k_BTKC, v_BTKC, segments_BT, interpret)[0]


def _triton_forward(q_BTHC, k_BTKC, v_BTKC, segments_BT, interpret):
    from jax.experimental.pallas.ops.gpu.attention import mha

    @functools.partial(jax.vmap, in_axes=3, out_axes=(3, 2))
    def forward(q_BTKC):
        options = _triton_options(q_BTKC, interpret) | {'return_residuals': True}
        return mha(q_BTKC, k_BTKC, v_BTKC, segments_BT, **options)

    out_BTKGC, lse_BKGT = forward(_grouped(q_BTHC, k_BTKC))
    # Named so that a rematerialization policy can save them: see `decoder.REMAT_POLICIES`.
    out_BTKGC, lse_BKGT = (checkpoint_name(x, 'attended') for x in (out_BTKGC, lse_BKGT))
    residuals = q_BTHC, k_BTKC, v_BTKC, segments_BT, out_BTKGC, lse_BKGT
    return out_BTKGC.reshape(q_BTHC.shape), residuals


def _triton_backward(interpret, residuals, gradient_BTHC):
    # Differentiating `mha` itself would leave its residuals without the names that `light` needs.
    from jax.experimental.pallas.ops.gpu.attention import _mha_backward

    q_BTHC, k_BTKC, v_BTKC, segments_BT, out_BTKGC, lse_BKGT = residuals

    @functools.partial(jax.vmap, in_axes=(3, 3, 2, 3), out_axes=(3, 3, 3))
    def backward(q_BTKC, out_BTKC, lse_BKT, gradient_BTKC):
        options = _triton_options(q_BTKC, interpret)
        # The kernel sums out · gradient in their common dtype. In bfloat16, the rounding error of
        # this sum would be the largest of all, so `out` is converted to float32.
        out32_BTKC = out_BTKC.astype(jnp.float32)
        values = q_BTKC, k_BTKC, v_BTKC, segments_BT, out32_BTKC, lse_BKT
        arguments = *options.values(), values, gradient_BTKC
        return _mha_backward(*arguments)[:3]

    grouped = _grouped(q_BTHC, k_BTKC), out_BTKGC, lse_BKGT, _grouped(gradient_BTHC, k_BTKC)
    dq_BTKGC, dk_BTKGC, dv_BTKGC = backward(*grouped)
    dk_BTKC, dv_BTKC = (x.sum(axis=3) for x in (dk_BTKGC, dv_BTKGC))
    return dq_BTKGC.reshape(q_BTHC.shape), dk_BTKC, dv_BTKC, None


triton.defvjp(_triton_forward, _triton_backward)


def _grouped(x_BTHC: jax.Array, k_BTKC: jax.Array) -> jax.Array:
    """Split the query heads by key head; return (B, T, K, G, C)."""
    B, T, K, C = k_BTKC.shape
    return x_BTHC.reshape(B, T, K, -1, C)


def _triton_options(q_BTKC: jax.Array, interpret: bool) -> dict[str, Any]:
    """Return the settings of the Triton kernel, in the order of its parameters."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes

    # In float32, blocks are half as long, so that they take as much shared memory as in bfloat16.
    query_block, key_block = (128, 64) if q_BTKC.dtype == jnp.bfloat16 else (64, 32)
    backward = dict(block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32)
    return {
        'sm_scale': q_BTKC.shape[-1] ** -0.5,
        'causal': True,
        'block_sizes': BlockSizes(query_block, key_block, **backward),
        'backward_pass_impl': 'triton',
        'num_warps': None,
        'num_stages': 2,
        'grid': None,
        'interpret': interpret,
        'debug': False,
        'return_residuals': False,
    }


KERNELS: dict[str, Callable[..., jax.Array]] = {'splash': splash, 'triton': triton}

"""Products of the input of linear layers with their narrow matrices: down-projections and routers.

Reading the wide input and writing its gradient dominate these products. Linear layers that share
their input, such as q, k and v, therefore have joint products: one for all down-projections, and
one for all routers. Without dropout, both multiply the same input, and then each gradient is a
single product as well.

Logits of routers are computed in float32, because rounding would change which experts are chosen.
Accelerators multiply bfloat16 several times as fast. If the input is bfloat16, a joint product
there has the float32 weights of a router as a sum of three bfloat16 terms, which together have all
of its bits. Products of bfloat16 numbers are exact in float32. Gradients of a joint product have
the precision of the input.

Dimension letters: N tokens, D inputs, Q columns of the down-projections or of any matrix, E
experts, to which the columns of the routers belong, R rank of one expert, P = E · R stacked ranks,
C columns of down-projections and routers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax import compiler
from malora_jax.adapters import products
from malora_jax.distributed import sharding

_HIGHEST = jax.lax.Precision.HIGHEST


def multiply_input(
    x_ND: jax.Array, downs: Sequence[jax.Array], routers: Sequence[jax.Array], down_axis: str
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Multiply one input with down-projections and routers.

    With both, each gradient is one product, so that none is computed for only some of the matrices.
    If some of them are frozen, call this function for down-projections and routers separately.

    Args:
        x_ND: (N, D), input.
        downs: Down-projections, (D, Q) each; they are cast to the dtype of the input.
        routers: Weights of routers, (D, E) float32 each.
        down_axis: Logical axis name of the columns of the down-projections.

    Returns:
        The products with the down-projections, (N, Q) in the dtype of the input, and those with the
        routers, (N, E) float32.
    """
    is_sharded = sharding.is_sharded(down_axis) or sharding.is_sharded('expert')
    if is_sharded or not (downs and routers):
        return (
            _fused_matmul(x_ND, downs, 'rank', down_axis),
            _fused_matmul(x_ND.astype(jnp.float32), routers, 'router', 'expert', _HIGHEST),
        )
    projected_NQ, logits_NE = _joint_matmul(
        x_ND, jnp.concatenate(downs, axis=1), jnp.concatenate(routers, axis=1)
    )
    return (
        _split(products.save_for_backward(projected_NQ, down_axis, 'rank'), downs),
        _split(products.save_for_backward(logits_NE, 'expert', 'router'), routers),
    )


def multiply_expert_inputs(
    inputs: Sequence[jax.Array], downs: Sequence[jax.Array]
) -> list[jax.Array]:
    """Multiply an input of each expert with the expert's own down-projections.

    Args:
        inputs: (N, D), input of each expert.
        downs: (E, D, R) each, down-projections of all experts.

    Returns:
        The products with each element of `downs`, (N, P) in the dtype of the inputs.
    """
    each = [
        multiply_input(x_ND, [down_EDR[expert] for down_EDR in downs], [], 'rank')[0]
        for expert, x_ND in enumerate(inputs)
    ]
    return [jnp.concatenate(parts, axis=1) for parts in zip(*each, strict=True)]


def _fused_matmul(
    x_ND: jax.Array,
    weights: Sequence[jax.Array],
    name: str,
    axis: str,
    precision: jax.lax.Precision | None = None,
) -> list[jax.Array]:
    """Multiply one input with several matrices of one kind, cast to its dtype, in one product."""

    def product(weight_DQ: jax.Array) -> jax.Array:
        weight_DQ = products.map_gradient(_transposed_narrow_first, weight_DQ).astype(x_ND.dtype)
        return products.save_for_backward(
            jnp.matmul(x_ND, weight_DQ, precision=precision), axis, name
        )

    # Concatenation along a sharded axis would move data between devices.
    if not weights or sharding.is_sharded(axis):
        return [product(weight_DQ) for weight_DQ in weights]
    return _split(product(jnp.concatenate(weights, axis=1)), weights)


def _narrow_factor_first(product_QD: jax.Array) -> jax.Array:
    """Return a gradient of weights, (Q, D), whose first factor is the narrow one.

    On CPUs, XLA computes the product of a transposed wide input with a narrow gradient up to 16
    times slower than the reverse product. The barrier keeps XLA from swapping the factors.
    """
    return compiler.barrier_on_cpu(product_QD)


def _transposed_narrow_first(gradient_DQ: jax.Array) -> jax.Array:
    """Return a gradient of weights that is computed as (Q, D), and then transposed."""
    return _narrow_factor_first(gradient_DQ.T).T


def _split(product: jax.Array, matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """Split the columns of a product with concatenated matrices into one product per matrix."""
    ends = np.cumsum([matrix.shape[1] for matrix in matrices])
    return jnp.split(product, ends[:-1], axis=1)


@jax.custom_vjp
def _joint_matmul(
    x_ND: jax.Array, down_DQ: jax.Array, router_DE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return x times the down-projections, in the dtype of x, and times the routers, in float32."""
    if x_ND.dtype != jnp.bfloat16:
        return _separate_products(x_ND, down_DQ, router_DE)
    return jax.lax.platform_dependent(
        x_ND, down_DQ, router_DE, cpu=_separate_products, default=_joint_product
    )


def _separate_products(
    x_ND: jax.Array, down_DQ: jax.Array, router_DE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_NE = jnp.matmul(x_ND.astype(jnp.float32), router_DE, precision=_HIGHEST)
    return x_ND @ down_DQ.astype(x_ND.dtype), logits_NE


def _joint_product(
    x_ND: jax.Array, down_DQ: jax.Array, router_DE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Multiply with the down-projections and with the three terms of the routers at once."""
    weights = [down_DQ.astype(jnp.bfloat16), *_bfloat16_terms(router_DE)]
    product = jnp.matmul(x_ND, jnp.concatenate(weights, axis=1), preferred_element_type=jnp.float32)
    projected_NQ, *logits = _split(product, weights)
    # The smallest terms are added first, to lose fewer of their bits.
    return projected_NQ.astype(x_ND.dtype), logits[2] + logits[1] + logits[0]


def _bfloat16_terms(matrix: jax.Array) -> list[jax.Array]:
    """Return three bfloat16 matrices whose sum is the float32 matrix; the first is the largest."""
    terms = []
    for _ in range(3):
        # XLA would remove a conversion to bfloat16 and back.
        term = jax.lax.reduce_precision(matrix, exponent_bits=8, mantissa_bits=7)
        terms.append(term.astype(jnp.bfloat16))
        matrix -= term
    return terms


def _joint_matmul_forward(
    x_ND: jax.Array, down_DQ: jax.Array, router_DE: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    return _joint_matmul(x_ND, down_DQ, router_DE), (x_ND, down_DQ, router_DE)


def _joint_matmul_backward(
    inputs: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (x_ND, down_DQ, router_DE), (projected_NQ, logits_NE) = inputs, gradients
    gradient_NC = jnp.concatenate([projected_NQ, logits_NE.astype(x_ND.dtype)], axis=1)
    weights_DC = jnp.concatenate([down_DQ, router_DE], axis=1).astype(x_ND.dtype)
    weight_gradient_CD = jnp.matmul(gradient_NC.T, x_ND, preferred_element_type=jnp.float32)
    down_QD, router_ED = jnp.split(
        _narrow_factor_first(weight_gradient_CD), [down_DQ.shape[1]], axis=0
    )
    return gradient_NC @ weights_DC.T, down_QD.T, router_ED.T


_joint_matmul.defvjp(_joint_matmul_forward, _joint_matmul_backward)

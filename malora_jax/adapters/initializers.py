"""Initial values: Kaiming-uniform projections, and the shared subspace of eq. (8) to (10).

Dimension letters: E experts, D inputs of the linear, R rank of one expert, S rank of the subspace,
I rank of an expert's own subspace.
"""

import jax
import jax.numpy as jnp


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform on ±1/√D with D = shape[-2] inputs: Kaiming with a = √5, the LoRA convention.

    Args:
        key: random key.
        shape: (..., D, R).

    Returns:
        float32 of that shape, entry variance 1 / (3 D).
    """
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def shared_subspace(
    key: jax.Array, *, inputs: int, num_experts: int, rank: int, shared_rank: int, beta: float
) -> tuple[jax.Array, jax.Array]:
    """Draw the shared down-projection S_A and the experts' cores P_t, eq. (8) to (10).

    The rows of P_t S_A keep the Kaiming scale (squared norm about 1/3), and P_t S_A does not depend
    on β.

    Returns:
        shared_down_DS, the transpose of S_A, and core_ESR, the transposes of P_t; float32.
    """
    # Eq. (8): K_t = U_t Σ_t V_t, with K_t (S × D) Kaiming-uniform. All arrays here are transposes:
    # k_EDS of K_t, v_DS of V_0, ut_SS of U_0.
    k_EDS = kaiming_uniform(key, (num_experts, inputs, shared_rank))
    v_DS, sigma_S, ut_SS = _decompose(k_EDS[0])
    # Of the other experts only U_t and Σ_t are used. K_t K_tᵀ = U_t Σ_t² U_tᵀ gives them in a tenth
    # of the time, in ascending order.
    square_ES, u_ESS = jax.lax.map(lambda k_DS: jnp.linalg.eigh(k_DS.T @ k_DS), k_EDS[1:])
    ut_ESS = u_ESS.swapaxes(1, 2)
    ut_ESS *= _signs(ut_ESS)
    scaled_ESS = jnp.sqrt(jnp.maximum(square_ES, 0))[:, :, None] * ut_ESS
    scaled_ESS = jnp.concatenate([(sigma_S[:, None] * ut_SS)[None], scaled_ESS[:, ::-1]])
    # Eq. (9) and (10): S_A = β V_0, and the rows P_t = (U_t Σ_t)[:R] / β.
    return beta * v_DS, scaled_ESS[:, :, :rank] / beta


def orthonormal_bases(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Draw an orthonormal basis for each expert, (E, D, I): the left singular vectors."""
    bases_EDI, _, _ = jax.lax.map(_decompose, kaiming_uniform(key, shape))
    return bases_EDI


def _decompose(matrix_DS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the thin singular value decomposition of a matrix.

    Batches go through `jax.lax.map`, one matrix at a time: on CPU a batched decomposition waits for
    workers of the pool it runs on, and two of them at once on two cores wait for each other for
    ever (jaxlib's ParallelBatchMap).
    """
    v_DS, sigma_S, ut_SS = jnp.linalg.svd(matrix_DS, full_matrices=False)
    signs_S1 = _signs(ut_SS)
    return v_DS * signs_S1.T, sigma_S, ut_SS * signs_S1


def _signs(rows: jax.Array) -> jax.Array:
    """Return the sign of the largest entry of each row, (..., 1).

    A singular vector's sign is free, and libraries of different devices choose differently. With
    this sign the largest entry is positive, so that a seed means the same start everywhere.
    """
    largest = jnp.argmax(jnp.abs(rows), axis=-1, keepdims=True)
    return jnp.where(jnp.take_along_axis(rows, largest, axis=-1) < 0, -1.0, 1.0)

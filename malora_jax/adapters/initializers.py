"""Initializers: Kaiming-uniform projections, and MALoRA's shared subspace.

Equation numbers refer to the MALoRA paper.

Dimension letters: E experts, D inputs of the linear layer, R rank of one expert, S rank of the
shared subspace, I rank of an expert's own subspace.
"""

import jax
import jax.numpy as jnp


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw from the uniform distribution on [-1/√D, 1/√D]: Kaiming with a = √5, as in LoRA.

    Args:
        key: Random key.
        shape: (..., D, R), where D is the number of inputs.

    Returns:
        Float32 array of that shape, whose entries have variance 1 / (3 D).
    """
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def sparse_normal(key: jax.Array, inputs: int, rank: int, nonzeros: int) -> jax.Array:
    """Draw a sparse down-projection A of FlyLoRA, from the normal distribution N(0, 1/R²).

    Args:
        key: Random key.
        inputs: Number of inputs, D.
        rank: Number of rows of A, R.
        nonzeros: Number of entries of each row of A that are not zero, at random inputs.

    Returns:
        A transposed, (D, R) float32.
    """
    input_key, value_key = jax.random.split(key)
    is_nonzero_DR = jnp.broadcast_to(jnp.arange(inputs)[:, None] < nonzeros, (inputs, rank))
    is_nonzero_DR = jax.random.permutation(input_key, is_nonzero_DR, independent=True)
    return jnp.where(is_nonzero_DR, jax.random.normal(value_key, (inputs, rank)) / rank, 0)


def shared_subspace(
    key: jax.Array, *, inputs: int, num_experts: int, rank: int, shared_rank: int, beta: float
) -> tuple[jax.Array, jax.Array]:
    """Initialize the shared down-projection S_A and the experts' cores P_t, eq. (8) to (10).

    The rows of P_t S_A keep the Kaiming scale (squared norm about 1/3), and P_t S_A does not depend
    on β.

    Args:
        key: Random key.
        inputs: Number of inputs, D.
        num_experts: Number of experts, E.
        rank: Rank of one expert, R; at most `shared_rank`.
        shared_rank: Rank of the shared subspace, S; at most D.
        beta: β, the scale of S_A.

    Returns:
        S_A transposed, (D, S), and the P_t transposed, (E, S, R); float32.
    """
    # Eq. (8): K_t = U_t Σ_t V_t, with K_t (S × D) Kaiming-uniform. All arrays here are transposes:
    # k_EDS of K_t, v_DS of V_0, ut_SS of U_0.
    k_EDS = kaiming_uniform(key, (num_experts, inputs, shared_rank))
    v_DS, sigma_S, ut_SS = _svd(k_EDS[0])
    # The other experts need only U_t and Σ_t. The eigendecomposition K_t K_tᵀ = U_t Σ_t² U_tᵀ takes
    # a tenth of the time of an SVD. Eigenvalues are in ascending order, hence the reversal below.
    square_ES, u_ESS = jax.lax.map(lambda k_DS: jnp.linalg.eigh(k_DS.T @ k_DS), k_EDS[1:])
    ut_ESS = u_ESS.swapaxes(1, 2)
    ut_ESS *= _signs(ut_ESS)
    scaled_ESS = jnp.sqrt(jnp.maximum(square_ES, 0))[:, :, None] * ut_ESS
    scaled_ESS = jnp.concatenate([(sigma_S[:, None] * ut_SS)[None], scaled_ESS[:, ::-1]])
    # Eq. (9) and (10): S_A = β V_0, and the rows P_t = (U_t Σ_t)[:R] / β.
    return beta * v_DS, scaled_ESS[:, :, :rank] / beta


def orthonormal_bases(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Draw a random orthonormal basis for each expert.

    The basis holds the left singular vectors of a Kaiming-uniform matrix.

    Args:
        key: Random key.
        shape: (E, D, I) with I ≤ D.

    Returns:
        Float32 array of that shape, with orthonormal columns for each expert.
    """
    bases_EDI, _, _ = jax.lax.map(_svd, kaiming_uniform(key, shape))
    return bases_EDI


def _svd(matrix_DS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the thin singular value decomposition of a matrix, with signs fixed by `_signs`.

    Do not call this function on a batch: use `jax.lax.map`, one matrix at a time. On CPU, a batched
    decomposition occupies a thread of a pool while it waits for other threads of the same pool.
    Two concurrent batches on two cores therefore deadlock (jaxlib's ParallelBatchMap).
    """
    v_DS, sigma_S, ut_SS = jnp.linalg.svd(matrix_DS, full_matrices=False)
    signs_S1 = _signs(ut_SS)
    return v_DS * signs_S1.T, sigma_S, ut_SS * signs_S1


def _signs(rows: jax.Array) -> jax.Array:
    """Find the largest entry of each row by absolute value, and return its sign, (..., 1).

    The sign of a singular vector is arbitrary and differs between backends. If a vector is
    multiplied with the sign that this function returns, its largest entry becomes positive. A seed
    then gives the same initial values on every device.
    """
    largest = jnp.argmax(jnp.abs(rows), axis=-1, keepdims=True)
    return jnp.where(jnp.take_along_axis(rows, largest, axis=-1) < 0, -1.0, 1.0)

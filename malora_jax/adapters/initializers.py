"""How adapters start: Kaiming-uniform projections and the shared subspace of eq. (8)-(10).

Dimension letters: E experts, D inputs of the linear, R rank of one expert, S rank of the shared
subspace.
"""

import functools

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
    """The shared down-projection S_A and the experts' cores P_t, eq. (8)-(10).

    For each expert, K_t (S × D) is Kaiming-uniform with thin singular value decomposition
    U_t Σ_t V_t. Then P_t = (U_t Σ_t)[:R] / β and S_A = β V_0, so that the rows of P_t S_A keep
    the Kaiming scale (squared norm about 1/3) and P_t S_A does not depend on β.

    Returns:
        shared_down_DS, the transpose of S_A, and core_ESR, the transposes of P_t; float32.
    """
    k_EDS = kaiming_uniform(key, (num_experts, inputs, shared_rank))
    # K_t is the transpose of k_EDS[t]: k = V^T Σ U^T.
    # One at a time: on CPU a batched decomposition waits for workers of the pool it runs on, and
    # two of them at once on two cores wait for each other for ever (jaxlib's ParallelBatchMap).
    v_EDS, sigma_ES, ut_ESS = jax.lax.map(
        functools.partial(jnp.linalg.svd, full_matrices=False), k_EDS
    )
    core_ESR = sigma_ES[:, :, None] * ut_ESS[:, :, :rank] / beta
    return beta * v_EDS[0], core_ESR

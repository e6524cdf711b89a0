"""How adapters start: Kaiming-uniform projections and the shared subspace of eq. (8)-(10).

Dimension letters: E experts, D inputs and F outputs of the linear, R rank of one expert, S rank of
the subspace.
"""

import jax
import jax.numpy as jnp

from malora_jax.adapters.config import AdapterConfig


def start(
    key: jax.Array, config: AdapterConfig, inputs: int, features: int
) -> dict[str, jax.Array]:
    """The leaves of one adapted linear before training, float32.

    Whatever is last on the output's side is zero, so that the update is. The paper gives the start
    of MALoRA's leaves. It does not say how W_g starts: Kaiming-uniform, as a linear layer does in
    the paper's framework. Nor does it for two of the ablations. Where each expert has a subspace
    of its own, it gets an orthonormal basis times β, as S_A, and a Kaiming-uniform core over β, so
    that the rows of P_t S_t have MALoRA's scale. Where B_t is decomposed, everything but S_B
    starts as a linear layer.

    Args:
        key: random key.
        config: the settings.
        inputs: D.
        features: F.

    Returns:
        The router, if there is one, and the factors, by name; shapes as in `LowRankExperts`.
    """
    router_key, key = jax.random.split(key)
    leaves = _factors(key, config, inputs, features)
    if config.identical_start:
        alike = ('core',) if 'shared_down' in leaves else ('down', 'core')
        leaves |= {
            name: jnp.broadcast_to(leaf[:1], leaf.shape)
            for name, leaf in leaves.items()
            if name in alike
        }
    if config.has_router:
        leaves['router'] = kaiming_uniform(router_key, (inputs, config.num_experts))
    return leaves


def _factors(
    key: jax.Array, config: AdapterConfig, inputs: int, features: int
) -> dict[str, jax.Array]:
    E, R, S = config.num_experts, config.rank, config.shared_rank
    key, core_key = jax.random.split(key)
    up_ERF = jnp.zeros((E, R, features))
    match config.factors:
        case ('shared_down', 'core', 'up'):
            shared_down_DS, core_ESR = shared_subspace(
                key, inputs=inputs, num_experts=E, rank=R, shared_rank=S, beta=config.beta
            )
            return {'shared_down': shared_down_DS, 'core': core_ESR, 'up': up_ERF}
        case ('down', 'core', 'up'):
            own_EDI, _, _ = jax.lax.map(_decompose, kaiming_uniform(key, (E, inputs, S // E)))
            core_EIR = kaiming_uniform(core_key, (E, S // E, R)) / config.beta
            return {'down': config.beta * own_EDI, 'core': core_EIR, 'up': up_ERF}
        case ('down', 'core', 'shared_up'):
            down_EDR = kaiming_uniform(key, (E, inputs, R))
            core_ERS = kaiming_uniform(core_key, (E, R, S))
            return {'down': down_EDR, 'core': core_ERS, 'shared_up': jnp.zeros((S, features))}
        case ('shared_down', 'up'):
            return {'shared_down': kaiming_uniform(key, (inputs, S)), 'up': up_ERF}
        case _:
            return {'down': kaiming_uniform(key, (E, inputs, R)), 'up': up_ERF}


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
    v_DS, sigma_S, ut_SS = _decompose(k_EDS[0])
    # Without V_t there is a way that takes a tenth of the time: K_t K_t^T = U_t Σ_t² U_t^T.
    square_ES, u_ESS = jax.lax.map(lambda k_DS: jnp.linalg.eigh(k_DS.T @ k_DS), k_EDS[1:])
    ut_ESS = u_ESS.swapaxes(1, 2)
    ut_ESS *= _signs(ut_ESS)
    scaled_ESS = jnp.sqrt(jnp.maximum(square_ES, 0))[:, :, None] * ut_ESS
    scaled_ESS = jnp.concatenate([(sigma_S[:, None] * ut_SS)[None], scaled_ESS[:, ::-1]])
    return beta * v_DS, scaled_ESS[:, :, :rank] / beta


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

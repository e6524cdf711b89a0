"""Reference implementation of the paper's equations in float64 numpy, token by token.

It is written from the equations alone, with the paper's letters and orientation (A_t is r × n). It
shares no code with the library.
"""

import itertools

import numpy as np

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.methods import settings_of


def softmax(logits):
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def gates(x, W_g, K, renormalize=False, equal_gates=False):
    """Return one token's gates, eq. (4): G(x) = TopK(Softmax(W_g x)); low indices win ties."""
    probabilities = softmax(W_g @ x)
    kept = sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t))[:K]
    G = np.zeros_like(probabilities)
    G[kept] = 1 / K if equal_gates else probabilities[kept]
    return G / G.sum() if renormalize else G


def expert_matrix(t, leaves, config: AdapterConfig):
    """Return the unscaled m × n matrix of expert t, as in the paper's sections 2 and 3.

    Raises:
        ValueError: The subspace is unknown.
    """
    settings = settings_of(config)
    if settings.start == 'svd':
        # √n B_t A_t: s = α √(n / r) is α / √r, the scale, times √n.
        return np.sqrt(len(leaves['down'][t])) * leaves['up'][t].T @ leaves['down'][t].T
    if not settings.shared_rank:
        return leaves['up'][t].T @ leaves['down'][t].T  # B_t A_t
    match settings.subspace:
        case 'down':  # B_t P_t S_A
            return leaves['up'][t].T @ leaves['core'][t].T @ leaves['shared_down'].T
        case 'own':  # B_t P_t S_t
            return leaves['up'][t].T @ leaves['core'][t].T @ leaves['down'][t].T
        case 'up':  # S_B P_t A_t
            return leaves['shared_up'].T @ leaves['core'][t].T @ leaves['down'][t].T
        case 'heads':  # B_t A
            return leaves['up'][t].T @ leaves['shared_down'].T
        case 'tails':  # B A_t
            return leaves['shared_up'].T @ leaves['down'][t].T
        case 'both':  # B C_t A
            return leaves['shared_up'].T @ leaves['core'][t].T @ leaves['shared_down'].T
        case _:
            raise ValueError(settings.subspace)


def token_gates(x, dropped, leaves, config: AdapterConfig):
    """Return the gates G(x) of one token x (n,); a single expert always has gate 1.

    With `router_input` 'first', the router reads A x after dropout, A the shared down-projection.
    """
    if config.num_experts == 1:
        return np.ones(1)
    W_g, settings = leaves['router'].T, settings_of(config)
    if settings.router_input == 'first':
        x = leaves['shared_down'].T @ dropped
    return gates(x, W_g, settings.top_k, settings.renormalize, settings.equal_gates)


def scale(config: AdapterConfig):
    """Return the scale α / r, or α / √r for rank-stabilized adapters."""
    rank = config.structure.rank
    return config.alpha / (np.sqrt(rank) if config.rank_stabilized else rank)


def adapter_update(x_ND, leaves, config: AdapterConfig, dropped_ND=None):
    """Return the scaled update (α / r) Δ(x) or (α / √r) Δ(x) of every token, (N, m).

    GOAT subtracts its residual, the mean of the initial experts, from x without dropout.

    Args:
        x_ND: Inputs (N, n); the router always sees them without dropout.
        leaves: Arrays of the adapter by leaf name.
        config: Adapter configuration.
        dropped_ND: Inputs of the experts after dropout; None = no dropout.
    """
    experts = [expert_matrix(t, leaves, config) for t in range(config.num_experts)]
    rows, residual = [], 0 * experts[0]
    if settings_of(config).start == 'svd':
        start = {'down': leaves['residual_down'], 'up': leaves['residual_up']}
        residual = np.mean(
            [expert_matrix(t, start, config) for t in range(config.num_experts)], axis=0
        )
    for x, dropped in zip(x_ND, x_ND if dropped_ND is None else dropped_ND, strict=True):
        G = token_gates(x, dropped, leaves, config)
        mixture = sum(g * (D_t @ dropped) for g, D_t in zip(G, experts, strict=True))
        rows.append(scale(config) * (mixture - residual @ x))
    return np.stack(rows)


def column_norms(W, leaves, config: AdapterConfig):
    """Return DoRA's norms ‖W + (α/r) B A‖, one per output, (m,); W (m, n) has a row per output."""
    return np.linalg.norm(W + scale(config) * expert_matrix(0, leaves, config), axis=1)


def adapted_linear(x_ND, W, leaves, config: AdapterConfig, norms=None):
    """Return W x + (α / r) Δ(x) of every token; DoRA multiplies it by m / ‖W + (α/r) B A‖.

    `norms` replaces the norm, which has no gradient: finite differences hold it fixed.
    """
    y = x_ND @ W.T + adapter_update(x_ND, leaves, config)
    if not settings_of(config).magnitude:
        return y
    if norms is None:
        norms = column_norms(W, leaves, config)
    return leaves['magnitude'] / norms * y


def normal_divergence(p, q):
    """Return KL(p‖q) of two normal distributions; each is a pair of means and variances, (r,)."""
    (mean_p, variance_p), (mean_q, variance_q) = p, q
    distance = (mean_p - mean_q) ** 2
    return sum(np.log(variance_q / variance_p) + (variance_p + distance) / variance_q - 1) / 2


def alignment_loss(z_NR, tasks):
    """Return ½ KL(p_i‖p_j) + ½ KL(p_j‖p_i), averaged over the pairs of tasks i < j.

    p_i is the normal distribution of the rows of z that belong to task i.
    """
    groups = [z_NR[tasks == task] for task in np.unique(tasks)]
    normals = [(z.mean(axis=0), z.var(axis=0)) for z in groups if len(z) > 1]
    each = [
        (normal_divergence(p, q) + normal_divergence(q, p)) / 2
        for p, q in itertools.combinations(normals, 2)
    ]
    return np.mean(each) if each else 0.0


def balance_loss(x_ND, W_g, K):
    """Return the load-balancing loss N Σ_t f_t p_t.

    f_t is expert t's share of the token slots, p_t its mean probability.
    """
    chosen = np.stack([gates(x, W_g, K) > 0 for x in x_ND])
    p = np.mean([softmax(W_g @ x) for x in x_ND], axis=0)
    f = chosen.sum(axis=0) / chosen.sum()
    return len(p) * (f * p).sum()

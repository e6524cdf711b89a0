"""The paper's equations in float64 numpy, one token and one expert at a time.

Written from the equations alone, with the paper's letters and orientation (A_t is r × n), and
sharing no code with the library.
"""

import numpy as np

from malora_jax.adapters import AdapterConfig


def softmax(logits):
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def gates(x, W_g, K, renormalize=False):
    """Eq. (4): G(x) = TopK(Softmax(W_g x)); ties go to the lower index."""
    probabilities = softmax(W_g @ x)
    kept = sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t))[:K]
    G = np.zeros_like(probabilities)
    G[kept] = probabilities[kept]
    return G / G.sum() if renormalize else G


def delta(x, leaves, config: AdapterConfig):
    """Δ(x) of section 2's table for one token x (n,)."""
    E = config.num_experts
    up = [leaves['up'][t].T for t in range(E)]  # B_t, m × r
    if config.shared_rank:
        S_A = leaves['shared_down'].T
        down = [leaves['core'][t].T @ S_A for t in range(E)]  # P_t S_A
    else:
        down = [leaves['down'][t].T for t in range(E)]  # A_t
    G = np.ones(1)
    if E > 1:
        G = gates(x, leaves['router'].T, config.top_k, config.renormalize)
    return sum(G[t] * (up[t] @ (down[t] @ x)) for t in range(E))


def update(x_ND, leaves, config: AdapterConfig):
    """(α / r) Δ(x) of every token."""
    return np.stack([config.alpha / config.rank * delta(x, leaves, config) for x in x_ND])


def balance_loss(x_ND, W_g, K):
    """N Σ_t f_t p_t with f_t the share of token slots and p_t the mean probability."""
    chosen = np.stack([gates(x, W_g, K) > 0 for x in x_ND])
    p = np.mean([softmax(W_g @ x) for x in x_ND], axis=0)
    f = chosen.sum(axis=0) / chosen.sum()
    return len(p) * (f * p).sum()

"""Reference implementation of the paper's equations in float64 numpy, token by token.

It is written from the equations alone, with the paper's letters and orientation (A_t is r × n). It
shares no code with the library.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters import settings as flat_settings

# Cached, because the reference asks for them at every token, and creating them checks each field.
settings_of = functools.cache(flat_settings.settings_of)


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
        # s B_t A_t, divided by the scale; s = √(3 η n / r) with √η = α / (2 r).
        n, r = leaves['down'][t].shape
        s = np.sqrt(3 * (config.alpha / (2 * r)) ** 2 * n / r)
        if not settings.width_scale:  # s = α / r
            s = config.alpha / r
        return s / scale(config) * leaves['up'][t].T @ leaves['down'][t].T
    if not settings.shared_rank:
        return leaves['up'][t].T @ leaves['down'][t].T  # B_t A_t
    match settings.subspace:
        case 'down':  # B_t P_t S_A
            return leaves['up'][t].T @ leaves['core'][t].T @ leaves['shared_down'].T
        case 'own':  # B_t P_t S_t
            return leaves['up'][t].T @ leaves['core'][t].T @ leaves['down'][t].T
        case 'up':  # S_B P_t A_t
            return leaves['shared_up'].T @ leaves['core'][t].T @ leaves['down'][t].T
        case 'heads' | 'summed_heads':  # B_t A
            return leaves['up'][t].T @ leaves['shared_down'].T
        case 'tails':  # B A_t
            return leaves['shared_up'].T @ leaves['down'][t].T
        case 'both':  # B C_t A
            return leaves['shared_up'].T @ leaves['core'][t].T @ leaves['shared_down'].T
        case 'ranks':  # b_t a_tᵀ
            return np.outer(leaves['shared_up'].T[:, t], leaves['shared_down'].T[t])
        case _:
            raise ValueError(settings.subspace)


class TokenRouting(NamedTuple):
    """Routing of one token; entries are those of the experts.

    Attributes:
        gates: G(x).
        probabilities: Probabilities, which sum to one.
        choice: Scores by which experts are chosen.
        chosen: True for the experts that the token is routed to.
    """

    gates: np.ndarray
    probabilities: np.ndarray
    choice: np.ndarray
    chosen: np.ndarray


def expert_scores(x, dropped, leaves, config: AdapterConfig):
    """Return one token's probabilities, gates before the choice, and scores of the choice."""
    settings = settings_of(config)
    p, scores, choice = _scores(x, dropped, leaves, settings)
    # In published code, the scores that choose are also the gates.
    return (p, choice, choice) if settings.bias_in_gates else (p, scores, choice)


def _scores(x, dropped, leaves, settings):
    bias = leaves.get('balance_bias', 0)
    if settings.scores == 'magnitude':  # |A x|; |A x + d| chooses
        activations = leaves['shared_down'].T @ dropped
        scores, choice = abs(activations), abs(activations + bias)
        return scores / scores.sum(), scores, choice
    if settings.router_dropout:
        x = dropped
    if settings.router_input == 'first':  # A x, with the shared down-projection A
        x = leaves['shared_down'].T @ dropped
    logits = leaves['router'].T @ x
    if settings.scores == 'absolute':
        logits = abs(logits)
    if settings.scores == 'sigmoid':
        scores = 1 / (1 + np.exp(-logits))
        return scores / scores.sum(), scores, scores + bias
    p = softmax(logits)
    if settings.scores == 'threshold':  # p - sigmoid(w · x + b) / N
        tau = 1 / (1 + np.exp(-(leaves['threshold'][:, 0] @ x + leaves['threshold_bias'][0])))
        return p, p - tau / len(p), p - tau / len(p)
    return p, p, p + bias


def sampled_routing(order_K, config: AdapterConfig):
    """Return the routing of one token to sampled experts, with equal gates."""
    chosen = np.zeros(config.num_experts, bool)
    chosen[order_K] = True
    unknown = np.full(len(chosen), np.nan)
    return TokenRouting(chosen / len(order_K), unknown, unknown, chosen)


def token_routing(x, dropped, leaves, config: AdapterConfig):
    """Return the routing of one token x (n,); a single expert and M-LoRA's heads have gate 1."""
    settings, N = settings_of(config), config.num_experts
    if N == 1 or settings.subspace == 'summed_heads':
        return TokenRouting(np.ones(N), np.ones(N), np.ones(N), np.ones(N, bool))
    p, scores, choice = expert_scores(x, dropped, leaves, config)
    chosen = np.zeros(len(p), bool)
    chosen[sorted(range(len(p)), key=lambda t: (-choice[t], t))[: settings.top_k]] = True
    if settings.scores == 'threshold':
        chosen &= choice >= 0
    G = np.where(chosen, scores, 0)
    if settings.renormalize:
        G = G / G.sum()
    if settings.equal_gates:
        G = chosen / settings.top_k
    if settings.gates_sum_to_k:
        G = G * settings.top_k
    return TokenRouting(G, p, choice, chosen)


def scale(config: AdapterConfig):
    """Return the scale α / r, or α / √r for rank-stabilized adapters."""
    rank = config.structure.rank
    return config.alpha / (np.sqrt(rank) if config.rank_stabilized else rank)


def task_matrix(t, leaves, config: AdapterConfig):
    """Return the unscaled m × n matrix of task t of MTL-LoRA: Σ_i softmax(w_t / τ)_i B_i Λ_t A."""
    weights = softmax(leaves['task_weights'][t] / settings_of(config).task_temperature)
    B = sum(weight * B_i.T for weight, B_i in zip(weights, leaves['up'], strict=True))
    return B @ leaves['core'][t].T @ leaves['shared_down'].T


def adapter_update(x_ND, leaves, config: AdapterConfig, dropped_ND=None, routings=None, tasks=None):
    """Return the scaled update (α / r) Δ(x) or (α / √r) Δ(x) of every token, (N, m).

    GOAT subtracts its residual, the mean of the initial experts, from x without dropout. M-LoRA
    subtracts the sum of its initial heads in the same way.

    Args:
        x_ND: Inputs (N, n); the router sees them without dropout, except with `router_dropout`.
        leaves: Arrays of the adapter by leaf name.
        config: Adapter configuration.
        dropped_ND: Inputs of the experts after dropout: (N, n), or (experts, N, n) with a mask for
            each expert; None = no dropout.
        routings: Routing of each token; computed by default.
        tasks: Task of each token, for MTL-LoRA; -1 for padding, whose update is zero.
    """
    dropped_ND = x_ND if dropped_ND is None else dropped_ND
    if config.tasks:
        matrices = [task_matrix(t, leaves, config) for t in range(len(config.tasks))]
        rows = [(t >= 0) * matrices[t] @ x for t, x in zip(tasks, dropped_ND, strict=True)]
        return scale(config) * np.stack(rows)
    # The inputs of each token: one for each expert. Routers do not read those that differ.
    inputs = np.broadcast_to(dropped_ND, (config.num_experts, *x_ND.shape)).swapaxes(0, 1)
    if settings_of(config).num_up_experts:
        both = zip(x_ND, inputs, strict=True)
        return np.stack([two_router_update(*each, leaves, config) for each in both])
    if routings is None:
        routings = [
            token_routing(x, each[0], leaves, config) for x, each in zip(x_ND, inputs, strict=True)
        ]
    experts = [expert_matrix(t, leaves, config) for t in range(config.num_experts)]
    rows, residual = [], 0 * experts[0]
    if settings_of(config).start == 'svd':
        start = {'down': leaves['residual_down'], 'up': leaves['residual_up']}
        residual = np.mean(
            [expert_matrix(t, start, config) for t in range(config.num_experts)], axis=0
        )
    if settings_of(config).subspace == 'summed_heads':
        residual = leaves['residual_up'].T @ leaves['residual_down'].T  # (Σ_i B_i⁰) A⁰
    for x, each, routing in zip(x_ND, inputs, routings, strict=True):
        terms = zip(routing.gates, experts, each, strict=True)
        mixture = sum(g * (D_t @ dropped) for g, D_t, dropped in terms)
        rows.append(scale(config) * (mixture - residual @ x))
    return np.stack(rows)


def two_router_update(x, inputs, leaves, config: AdapterConfig):
    """Return D²MoRA's update of one token: (α / r) Σ_j Softmax(W_2 z)_j B_j z, z = Σ_i G_i A_i x.

    G is the gates of the first router, which reads x without dropout, except with `router_dropout`.
    The down-projection A_i reads inputs[i], x after dropout.
    """
    G = token_routing(x, inputs[0], leaves, config).gates
    z = sum(G[i] * (A_i.T @ inputs[i]) for i, A_i in enumerate(leaves['down']))
    H = softmax(leaves['up_router'].T @ z)
    return scale(config) * sum(H[j] * (B_j.T @ z) for j, B_j in enumerate(leaves['up']))


def column_norms(W, leaves, config: AdapterConfig):
    """Return DoRA's norms ‖W + (α/r) B A‖, one per output, (m,); W (m, n) has a row per output."""
    return np.linalg.norm(W + scale(config) * expert_matrix(0, leaves, config), axis=1)


def adapted_linear(x_ND, W, leaves, config: AdapterConfig, norms=None, routings=None, tasks=None):
    """Return W x + (α / r) Δ(x) of every token; DoRA multiplies it by m / ‖W + (α/r) B A‖.

    `norms` replaces the norm, which has no gradient: finite differences hold it fixed.
    """
    y = x_ND @ W.T + adapter_update(x_ND, leaves, config, routings=routings, tasks=tasks)
    if not settings_of(config).magnitude:
        return y
    if norms is None:
        norms = column_norms(W, leaves, config)
    return leaves['magnitude'] / norms * y


def log_probability(probabilities, order_K):
    """Return log Q = Σ_j [log q_{i_j} - log(1 - Σ_{j' < j} q_{i_j'})] of experts i_1, …, i_K."""
    total, left = 0.0, 1.0
    for i in order_K:
        total += np.log(probabilities[i]) - np.log(left)
        left -= probabilities[i]
    return total


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


def similarity_loss(leaves, config: AdapterConfig):
    """Return Σ_{i<j} |cos(M_i, M_j)| of one linear, over the A_t, over the cores and over the B_t.

    The experts' own matrices count if they are trained.
    """
    total = 0.0
    for name in {'down', 'core', 'up'} & {*leaves} - {*config.frozen}:
        vectors = [matrix.ravel() for matrix in leaves[name]]
        for a, b in itertools.combinations(vectors, 2):
            total += abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return total


def balance_loss(x_ND, W_g, K):
    """Return the load-balancing loss of a softmax router for the tokens x."""
    chosen = [gates(x, W_g, K) > 0 for x in x_ND]
    return load_balance([softmax(W_g @ x) for x in x_ND], chosen)


def load_balance(probabilities_NE, chosen_NE):
    """Return the load-balancing loss N Σ_t f_t p_t.

    f_t is expert t's share of the token slots, p_t its mean probability.
    """
    p, chosen = np.mean(probabilities_NE, axis=0), np.sum(chosen_NE, axis=0)
    return len(p) * (chosen / chosen.sum() * p).sum()


def distance_balance(distances_NE, chosen_NE):
    """Return the load-balancing loss N Σ_t f_t d_t of AdaMoLE's published code.

    f_t is the share of the tokens that choose expert t, d_t the mean of its distances p_t - τ.
    """
    f, d = np.mean(chosen_NE, axis=0), np.mean(distances_NE, axis=0)
    return sum(len(f) * f_t * d_t for f_t, d_t in zip(f, d, strict=True))

"""The equation of a routed mixture in float64 NumPy, one token and one expert at a time."""

from typing import Any

import numpy as np


def linear(x: np.ndarray, tensors: dict[str, np.ndarray], block: dict[str, Any]) -> np.ndarray:
    """Return W x + b + scale · Σ_t g_t B_t A_t x for tokens x.

    With a second router, which has the softmax h, return W x + b + scale · Σ_u h_u(z) B_u z for
    z = Σ_t g_t A_t x.

    Args:
        x: (N, D), tokens.
        tensors: Tensors of a linear layer, named as in an export: `base.weight`, `base.bias` if
            there is a bias, `down.weight`, `router.weight` and `up.weight`; and those that the
            block's gates need.
        block: Block `mixture` of config.json.
    """
    rank, settings = block['rank'], gate_settings(block)
    offset = tensors.get('router.offset.weight', 0.0)
    outputs = []
    for token in x:
        gates = expert_gates(tensors['router.weight'] @ token, offset, block)
        gates = [*gates, *[1.0] * settings['num_residual_experts']]
        rows = [slice(expert * rank, (expert + 1) * rank) for expert in range(len(gates))]
        hidden = [
            gate * (tensors['down.weight'][row] @ token)
            for gate, row in zip(gates, rows, strict=True)
        ]
        if settings['num_up_experts']:
            z = sum(hidden)
            hidden = [weight * z for weight in softmax(tensors['router.up.weight'] @ z)]
        update = sum(
            tensors['up.weight'][:, index * rank : (index + 1) * rank] @ each
            for index, each in enumerate(hidden)
        )
        bias = tensors.get('base.bias', 0.0)
        outputs.append(tensors['base.weight'] @ token + bias + block['scale'] * update)
    return np.stack(outputs)


def token_gates(x: np.ndarray, router: np.ndarray, block: dict[str, Any]) -> np.ndarray:
    """Return the gates of tokens x, (N, E)."""
    return np.stack([expert_gates(router @ token, 0.0, block) for token in x])


def expert_gates(logits: np.ndarray, offset: Any, block: dict[str, Any]) -> list[float]:
    """Return the gates of the experts of one token."""
    settings = gate_settings(block)
    chooses = gate = softmax(np.abs(logits) if settings['scores'] == 'absolute' else logits)
    if settings['scores'] == 'sigmoid':
        gate = 1 / (1 + np.exp(-logits))
        chooses = gate
    if settings['scores'] == 'magnitude':
        gate, chooses = np.abs(logits), logits
    if settings['scores'] == 'threshold':
        gate = softmax(logits[:-1])
        last = (logits + offset)[-1]
        chooses = gate = gate - 1 / (1 + np.exp(-last)) / len(gate)
    else:
        chooses = chooses + offset
    if settings['scores'] == 'magnitude':
        chooses = np.abs(chooses)
    if settings['offset_in_gates']:
        gate = chooses
    experts = range(len(gate))
    chosen = sorted(experts, key=lambda expert: (-chooses[expert], expert))[: block['top_k']]
    if settings['scores'] == 'threshold':
        chosen = [expert for expert in chosen if gate[expert] >= 0]
    total = sum(gate[expert] for expert in chosen)
    kinds = {
        'softmax': lambda expert: gate[expert],
        'renormalized': lambda expert: gate[expert] / total,
        'equal': lambda expert: 1 / block['top_k'],
    }
    value = kinds[settings['kind']]
    return [settings['factor'] * value(expert) if expert in chosen else 0.0 for expert in experts]


def gate_settings(block: dict[str, Any]) -> dict[str, Any]:
    """Return the block's settings of the gates, which may be a kind alone."""
    if isinstance(block['gates'], dict):
        return block['gates']
    return {
        'kind': block['gates'],
        'scores': 'softmax',
        'factor': 1,
        'offset_in_gates': False,
        'num_residual_experts': 0,
        'num_up_experts': 0,
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()

"""The equation of a routed mixture in float64 NumPy, one token and one expert at a time."""

from typing import Any

import numpy as np


def linear(x: np.ndarray, tensors: dict[str, np.ndarray], block: dict[str, Any]) -> np.ndarray:
    """Return W x + b + scale · Σ_t g_t B_t A_t x for tokens x.

    Args:
        x: (N, D), tokens.
        tensors: Tensors of a linear layer, named as in an export: `base.weight`, `base.bias` if
            there is a bias, `down.weight`, `router.weight` and `up.weight`.
        block: Block `mixture` of config.json.
    """
    rank = block['rank']
    outputs = []
    for token, gates in zip(x, token_gates(x, tensors['router.weight'], block), strict=True):
        y = tensors['base.weight'] @ token + tensors.get('base.bias', 0.0)
        for expert, gate in enumerate(gates):
            rows = slice(expert * rank, (expert + 1) * rank)
            activations = tensors['down.weight'][rows] @ token
            y = y + block['scale'] * gate * (tensors['up.weight'][:, rows] @ activations)
        outputs.append(y)
    return np.stack(outputs)


def token_gates(x: np.ndarray, router: np.ndarray, block: dict[str, Any]) -> np.ndarray:
    """Return the gates of tokens x, (N, E)."""
    gates = np.zeros((len(x), len(router)))
    for row, token in zip(gates, x, strict=True):
        logits = router @ token
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        chosen = sorted(range(len(router)), key=lambda expert: (-probabilities[expert], expert))
        chosen = chosen[: block['top_k']]
        total = sum(probabilities[expert] for expert in chosen)
        for expert in chosen:
            row[expert] = {
                'softmax': probabilities[expert],
                'renormalized': probabilities[expert] / total,
                'equal': 1 / len(chosen),
            }[block['gates']]
    return gates

"""Reference of a training step whose routers sample experts, in float64 NumPy.

Dimension letters: B batch, M samples, T sequence, N = B · T tokens, K experts of a token.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters import routers
from malora_jax.adapters.trees import named_leaves
from malora_jax.models import Decoder
from tests.helpers import reference
from tests.helpers.reference_decoder import ReferenceDecoder, ReferenceLosses, token_nll

Orders = Mapping[str, np.ndarray]


class Fixed(NamedTuple):
    """Values that have no gradient in the loss of the routers.

    Attributes:
        inputs: Inputs (N, n) of the routers by path, for each sample.
        advantages: (M, B, T), credit of each token minus that of the other samples.
    """

    inputs: list[dict[str, np.ndarray]]
    advantages: np.ndarray


def sampled_orders(model: Decoder, variables: Any, batch: Any, key: jax.Array) -> list[Orders]:
    """Return the experts (N, K) of each token that a step samples, by path and in their order.

    Args:
        model: Decoder, without dropout.
        variables: Variable collections of the decoder.
        batch: Packed batch.
        key: Random key of the step.

    Returns:
        Experts for each of the M samples.
    """
    num_experts, samples = model.adapter.num_experts, model.adapter.router.samples
    top_k, ordered_top_k = model.adapter.router.top_k, routers.ordered_top_k
    B, T = batch['inputs'].shape

    def encode(scores_NE, logits_NE, top_k):
        """Return the experts of each token as the digits of a number, for their probability."""
        selected_NE, _ = ordered_top_k(scores_NE, logits_NE, top_k)
        _, order_NK = jax.lax.top_k(scores_NE, top_k)
        return selected_NE, order_NK @ num_experts ** jnp.arange(top_k)

    rows = [
        jnp.repeat(batch[name], samples, axis=0) for name in ('inputs', 'positions', 'segment_ids')
    ]
    _, selection_key = jax.random.split(key)
    with mock.patch.object(routers, 'ordered_top_k', encode):
        _, collections = model.apply(
            variables,
            *rows,
            jnp.ones((B * samples * T, 1)),
            rngs={'selection': selection_key},
            mutable=('selection',),
        )
    orders: list[dict[str, np.ndarray]] = [{} for _ in range(samples)]
    for path, code_LN in named_leaves(collections['selection']):
        order_LNK = np.asarray(code_LN)[..., None] // num_experts ** np.arange(top_k) % num_experts
        for layer, order_NK in enumerate(order_LNK):
            linear = path.removeprefix('layers/').rpartition('/')[0]
            order_BMTK = order_NK.reshape(B, samples, T, top_k)
            for m in range(samples):
                orders[m][f'layers/{layer}/{linear}'] = order_BMTK[:, m].reshape(-1, top_k)
    return orders


def cost_to_go(nll_BT: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    """Return the sum of the losses of each token and of the later tokens of its example."""
    credit = np.zeros_like(nll_BT)
    for b, t in np.ndindex(*nll_BT.shape):
        is_later = (segments_BT[b] == segments_BT[b, t]) & (np.arange(nll_BT.shape[1]) >= t)
        credit[b, t] = nll_BT[b][is_later].sum()
    return credit


def sampled_losses(
    model: Decoder, variables: Any, batch: Any, orders: list[Orders], fixed: Fixed | None = None
) -> tuple[ReferenceLosses, Fixed]:
    """Return the losses of a step with given experts, averaged over the samples.

    The gradient of `total` with respect to the routers is the estimate of their gradient.

    Args:
        model: Decoder with an adapter that samples experts.
        variables: Variable collections of the decoder.
        batch: Packed batch.
        orders: Experts of each sample, as `sampled_orders` returns them.
        fixed: Values without a gradient; those of these variables by default.
    """
    adapter, samples, segments = model.adapter, len(orders), batch['segment_ids']
    decoders = [
        ReferenceDecoder(model.config, variables, adapter, orders=order) for order in orders
    ]
    outputs = [
        decoder(batch['inputs'], batch['positions'], batch['segment_ids']) for decoder in decoders
    ]
    nll_MBT = np.stack([token_nll(each, batch) for each in outputs])
    if fixed is None:
        credit = np.stack([cost_to_go(nll_BT, segments) for nll_BT in nll_MBT])
        others = [np.delete(credit, m, axis=0).mean(axis=0) for m in range(samples)]
        fixed = Fixed([each.inputs for each in outputs], credit - np.stack(others))
    real, router, balance = segments.reshape(-1) > 0, 0.0, []
    for path in orders[0]:
        W_g, load, chances = outputs[0].routers[path].T, 0.0, []
        for m in range(samples):
            q_NE = np.stack([reference.softmax(W_g @ x) for x in fixed.inputs[m][path]])
            for t, advantage in enumerate(fixed.advantages[m].reshape(-1)):
                router += advantage * reference.log_probability(q_NE[t], orders[m][path][t])
            load += np.bincount(orders[m][path][real].reshape(-1), minlength=adapter.num_experts)
            chances.append(q_NE[real].mean(axis=0))
        f, p = load / load.sum(), np.mean(chances, axis=0)
        balance.append(adapter.num_experts * (f * p).sum())
    tokens = samples * batch['loss_mask'].sum()
    nll, mean_balance = nll_MBT.sum() / tokens, np.mean(balance)
    total = nll + adapter.router.balance_weight * mean_balance + router / tokens
    return ReferenceLosses(nll, mean_balance, 0.0, 0.0, total, outputs[0]), fixed

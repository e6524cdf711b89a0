"""The gate between LoRA's shrink and expand, for a batch with any adapters.

Every tensor operation has a fixed shape for N tokens and never waits for the device, so that the
gate compiles into a GPU's graph.

Dimension letters: N tokens, S slots of loaded adapters, P columns of the shrink buffer (the
server's maximal LoRA rank), L slices of a fused layer (such as q, k and v), E experts (their
maximal number), F also experts.
"""

from typing import NamedTuple

import torch

from malora_vllm.mixture import GATES, Mixture


class TokenRoutes(NamedTuple):
    """Columns and settings of the router and the experts of each token's adapter.

    Attributes:
        logit_column: (N, 2E) int64, columns of the experts' logits, then of their remainders.
        is_logit: (N, 2E) bool, whether the adapter has the expert and the part.
        no_logit: (N, 2E) float32, value of a part that the adapter lacks: -inf if it lacks the
            expert, else zero.
        top_k: (N, 1) int64, number of active experts.
        is_equal: (N, 1) bool, whether the active experts have equal gates.
        is_normalized: (N, 1) bool, whether the gates sum to one.
        column_expert: (N, P) int64, expert that each column belongs to; E if it belongs to none.
    """

    logit_column: torch.Tensor
    is_logit: torch.Tensor
    no_logit: torch.Tensor
    top_k: torch.Tensor
    is_equal: torch.Tensor
    is_normalized: torch.Tensor
    column_expert: torch.Tensor


class SlotTable:
    """Settings of the mixture in each slot, on the device.

    An ordinary LoRA has the settings of a single expert, whose gate is one. So has the last row,
    which tokens of the base model select with vLLM's slot -1.
    """

    def __init__(self, num_slots: int, num_columns: int, device: torch.device | str):
        """Make a table without mixtures.

        Args:
            num_slots: Number of adapter slots, S.
            num_columns: Columns of the shrink buffer, P.
            device: Device of the table.
        """
        self.num_columns = num_columns
        # num_experts, rank, router_parts, top_k, index of the gates in GATES.
        self._single_expert = (1, num_columns, 1, 1, GATES.index('equal'))
        self._settings = torch.tensor([self._single_expert] * (num_slots + 1), device=device)

    def set_mixture(self, slot: int, mixture: Mixture | None) -> None:
        """Record which adapter is in a slot.

        Args:
            slot: Index of the slot.
            mixture: Mixture in the slot, or None for an ordinary LoRA.
        """
        settings = self._single_expert
        if mixture is not None:
            settings = (
                mixture.num_experts,
                mixture.rank,
                mixture.router_parts,
                mixture.top_k,
                GATES.index(mixture.gates),
            )
        # In place: a captured graph reads the table at this address.
        self._settings[slot] = torch.tensor(settings)

    def num_experts(self, slot_N: torch.Tensor) -> torch.Tensor:
        """Return the number of experts of each token's adapter; one without a mixture.

        Args:
            slot_N: (N,) int64, slot of each token's adapter; -1 for the base model.
        """
        return self._settings[slot_N, 0]

    def token_routes(self, slot_N: torch.Tensor, max_experts: int) -> TokenRoutes:
        """Return the columns and settings of each token's adapter.

        Args:
            slot_N: (N,) int64, slot of each token's adapter; -1 for the base model.
            max_experts: Width of the gates, E: at least the number of experts of any token.
        """
        num_experts_N1, rank_N1, router_parts_N1, top_k_N1, gates_N1 = self._settings[slot_N].split(
            1, dim=1
        )
        expert_E = torch.arange(max_experts, device=slot_N.device)
        column_P = torch.arange(self.num_columns, device=slot_N.device)
        expert_columns_N1 = num_experts_N1 * rank_N1
        router_NE = expert_columns_N1 + expert_E
        logit_columns = torch.cat([router_NE, router_NE + num_experts_N1], dim=1)
        is_expert_NE = expert_E < num_experts_N1
        is_equal_N1 = gates_N1 == GATES.index('equal')
        return TokenRoutes(
            # A part that an adapter lacks has no column; clamping keeps the read in the buffer.
            logit_column=logit_columns.clamp(max=self.num_columns - 1),
            is_logit=torch.cat([is_expert_NE, is_expert_NE & (router_parts_N1 == 2)], dim=1),
            no_logit=torch.where(is_expert_NE, 0.0, -torch.inf).float().repeat(1, 2),
            top_k=top_k_N1,
            is_equal=is_equal_N1,
            is_normalized=is_equal_N1 | (gates_N1 == GATES.index('renormalized')),
            column_expert=torch.where(
                column_P < expert_columns_N1, column_P // rank_N1, max_experts
            ),
        )


def apply_gates(hidden_LNP: torch.Tensor, routes: TokenRoutes) -> torch.Tensor:
    """Return the activations A x, each multiplied by the gate of its expert.

    Args:
        hidden_LNP: (L, N, P), shrink buffer: activations of the experts, then the router's logits.
        routes: Columns and settings of each token's adapter.

    Returns:
        (L, N, P) in the dtype of the buffer; zero in the columns of the router.
    """
    probabilities_LNE = _logits(hidden_LNP, routes).softmax(dim=-1)
    selected_LNE = _top_k_mask(probabilities_LNE, routes.top_k)
    gates_LNE = torch.where(routes.is_equal, 1.0, probabilities_LNE)
    gates_LNE = torch.where(selected_LNE, gates_LNE, 0.0)
    sums_LN1 = gates_LNE.sum(dim=-1, keepdim=True)
    gates_LNE = torch.where(routes.is_normalized, gates_LNE / sums_LN1, gates_LNE)
    # Columns that belong to no expert select the added zero.
    gates_LNE = torch.nn.functional.pad(gates_LNE, (0, 1))
    gates_LNP = torch.take_along_dim(gates_LNE, routes.column_expert[None], dim=-1)
    return hidden_LNP * gates_LNP.to(hidden_LNP.dtype)


def _logits(hidden_LNP: torch.Tensor, routes: TokenRoutes) -> torch.Tensor:
    """Return the router's logits (L, N, E) in float32, -inf for experts that an adapter lacks."""
    parts = torch.take_along_dim(hidden_LNP, routes.logit_column[None], dim=-1).float()
    parts = torch.where(routes.is_logit, parts, routes.no_logit)
    return parts.unflatten(-1, (2, -1)).sum(dim=-2)


def _top_k_mask(scores_LNE: torch.Tensor, top_k_N1: torch.Tensor) -> torch.Tensor:
    """Return a mask (L, N, E) of the K largest scores; of equal scores, the lower index wins.

    An expert is selected if fewer than K others precede it. Unlike a sort, the comparisons of all
    pairs fuse with the operations around them.
    """
    score_LNE1, other_LN1F = scores_LNE.unsqueeze(-1), scores_LNE.unsqueeze(-2)
    index_E = torch.arange(scores_LNE.shape[-1], device=scores_LNE.device)
    precedes_LNEF = torch.where(
        index_E < index_E[:, None], other_LN1F >= score_LNE1, other_LN1F > score_LNE1
    )
    return precedes_LNEF.sum(dim=-1) < top_k_N1

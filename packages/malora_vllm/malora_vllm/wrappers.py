"""vLLM's LoRA kernels (Punica wrappers) with the gate between shrink and expand.

Dimension letters: N tokens, P columns of the shrink buffer, L slices of a fused layer.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU

from malora_vllm.gate import SlotTable, TokenRoutes, apply_gates
from malora_vllm.grouped_products import GroupedPunicaWrapperCPU
from malora_vllm.mixture import MAX_EXPERTS, Mixture


class GatedWrapper:
    """Mixin for a Punica wrapper that keeps a table of the mixtures in vLLM's adapter slots."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: Any,
    ):
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        lora_config = kwargs['lora_config']
        # vLLM leaves the entries behind the batch uninitialized, and padding tokens read them.
        self._token_lora_indices.fill_(-1)
        self._table = SlotTable(lora_config.max_loras, lora_config.max_lora_rank, device)

    def set_mixture(self, slot: int, mixture: Mixture | None) -> None:
        """Record which adapter is in a slot.

        Args:
            slot: Index of the slot.
            mixture: Mixture in the slot, or None for an ordinary LoRA.
        """
        self._table.set_mixture(slot, mixture)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Add B times the gated shrink buffer to the output; see PunicaWrapperBase.

        Args:
            y: (N, outputs), output of the layer.
            x: (L, N, P) float32, shrink buffer; on a CPU also L tensors of shape (N, P).
            *args: Further arguments of vLLM's method.
            **kwargs: Further arguments of vLLM's method.
        """
        super().add_expand(y, self._gate(x), *args, **kwargs)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gated buffer; without branches, because a captured graph cannot have any."""
        slot_N = self._token_lora_indices[: x.shape[1]]
        return apply_gates(x, self._table.token_routes(slot_N, MAX_EXPERTS))


class GatedPunicaWrapperGPU(GatedWrapper, PunicaWrapperGPU):
    """GPU kernels with the gate in every batch."""


class GatedPunicaWrapperCPU(GatedWrapper, GroupedPunicaWrapperCPU):
    """CPU kernels with the gate in batches that have a mixture."""

    # Routes of the batch, or None if it has no mixture.
    _routes: TokenRoutes | None = None

    def set_mixture(self, slot: int, mixture: Mixture | None) -> None:
        """Record which adapter is in a slot; see GatedWrapper."""
        super().set_mixture(slot, mixture)
        # vLLM keeps the metadata if an adapter with the same ID and slot replaces another.
        self._find_routes()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Look up the adapters of the next batch; see PunicaWrapperBase."""
        super().update_metadata(*args, **kwargs)
        self._find_routes()

    def _find_routes(self) -> None:
        slot_N = self.token_lora_indices
        max_experts = int(self._table.num_experts(slot_N).max())
        self._routes = self._table.token_routes(slot_N, max_experts) if max_experts > 1 else None

    def _gate(
        self, x: tuple[torch.Tensor, ...] | torch.Tensor
    ) -> tuple[torch.Tensor, ...] | torch.Tensor:
        return x if self._routes is None else apply_gates(torch.stack(tuple(x)), self._routes)

"""LoRA products on a CPU with one matrix product for all tokens of an adapter.

vLLM's own CPU kernels copy the adapter's factors for every token, which is slow. They also compute
tokens of the base model with the adapter in the last slot, because such tokens have slot -1.

Dimension letters: N tokens, D inputs and F outputs of a linear layer, P columns of the shrink
buffer, S slots of loaded adapters.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class GroupedPunicaWrapperCPU(PunicaWrapperCPU):
    """CPU kernels of vLLM, except that the products are grouped by adapter."""

    # Slots of the batch, each with the indices of its tokens.
    _groups: tuple[tuple[int, torch.Tensor], ...] = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the tokens of the next batch by adapter; see PunicaWrapperBase."""
        super().update_metadata(*args, **kwargs)
        slot_N = self.token_lora_indices
        self._groups = tuple(
            (slot, (slot_N == slot).nonzero().squeeze(1))
            for slot in slot_N.unique().tolist()
            if slot >= 0
        )

    def _apply_shrink(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float
    ) -> None:
        """Write scale · A x into the shrink buffer.

        Args:
            y: (N, P) float32, shrink buffer.
            x: (N, D), input of the linear layer.
            w_t_all: (S, 1, P or less, D), A of each slot.
            scale: Factor of the product.
        """
        for slot, tokens in self._groups:
            a_PD = w_t_all[slot, 0].to(y.dtype)
            y[tokens, : a_PD.shape[0]] = scale * (x[tokens].to(y.dtype) @ a_PD.T)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        """Add B times the shrink buffer to a slice of the output.

        Args:
            y: (N, all outputs), output of a fused layer.
            x: (N, P) float32, shrink buffer.
            w_t_all: (S, 1, F, P), B of each slot.
            y_offset: Start of the slice.
            y_slice_size: Size of the slice, F.
            add_inputs: Whether to add to the output instead of replacing it.
        """
        y_NF = y[:, y_offset : y_offset + y_slice_size]
        for slot, tokens in self._groups:
            update = x[tokens] @ w_t_all[slot, 0].to(x.dtype).T
            if add_inputs:
                update = update + y_NF[tokens]
            y_NF[tokens] = update.to(y.dtype)

"""A linear layer with a routed mixture of low-rank experts.

Dimension letters: N tokens (any number of leading axes), D inputs and F outputs of the linear
layer, E experts, R rank of one expert, P = E · R stacked ranks, K active experts per token.
"""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from mixture_transformers.schema import TARGETS, Mixture


def top_k_gates(logits_NE: torch.Tensor, top_k: int, kind: str) -> torch.Tensor:
    """Return the gates of all experts, which are zero outside the top k.

    Args:
        logits_NE: (N, E) float32, logits of the router.
        top_k: Number of active experts per token, K. Among experts with equal probabilities, those
            with lower indices win.
        kind: Kind of gates, one of `schema.GATES`.

    Returns:
        (N, E) float32.
    """
    probability_NE = logits_NE.softmax(dim=-1)
    # torch.topk does not define which of several equal values it returns; a stable sort does.
    sorted_NE, order_NE = probability_NE.sort(dim=-1, descending=True, stable=True)
    gate_NK, expert_NK = sorted_NE[..., :top_k], order_NE[..., :top_k]
    if kind == 'renormalized':
        gate_NK = gate_NK / gate_NK.sum(dim=-1, keepdim=True)
    elif kind == 'equal':
        gate_NK = torch.full_like(gate_NK, 1 / top_k)
    return torch.zeros_like(probability_NE).scatter(-1, expert_NK, gate_NK)


class Router(nn.Module):
    """Router of one linear layer, whose logits are computed in float32.

    This is not an `nn.Linear`, because vLLM replaces each `nn.Linear` and repacks its weight.

    Attributes:
        in_features: Number of inputs D, which row-wise tensor parallelism of transformers reads.
        weight: (E, D) float32. It is random in a new model, with the default standard deviation of
            `transformers`.
    """

    def __init__(self, in_features: int, num_experts: int, device: torch.device | None = None):
        super().__init__()
        self.in_features = in_features
        # The dtype is explicit, because a model is built with its own dtype as the default.
        weight_ED = torch.empty(num_experts, in_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(nn.init.normal_(weight_ED, std=0.02))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, E) float32."""
        with maybe_autocast(x_ND.device.type, enabled=False):
            return nn.functional.linear(x_ND.float(), self.weight.float())


class MixtureLinear(nn.Module):
    """Linear layer with a routed mixture: W x + scale · Σ_t g_t B_t A_t x over the experts t.

    The activations A_t x of all experts are computed in one product, multiplied by the gates g_t,
    and projected up in one product.

    Attributes:
        base: Linear layer with the frozen weight W, (F, D).
        down: Down-projections A_t of all experts, one after the other, (P, D).
        router: Router with weight (E, D).
        up: Up-projections B_t of all experts, side by side, (F, P).
    """

    def __init__(self, base: nn.Linear, mixture: Mixture):
        super().__init__()
        D, F, P = base.in_features, base.out_features, mixture.num_experts * mixture.rank
        like_base = {'device': base.weight.device, 'dtype': base.weight.dtype}
        self.base = base
        self.down = nn.Linear(D, P, bias=False, **like_base)
        self.router = Router(D, mixture.num_experts, base.weight.device)
        self.up = nn.Linear(P, F, bias=False, **like_base)
        self._mixture = mixture

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the output, (N, F) in the dtype of the base layer's output."""
        return self.base(x_ND) + self._update(x_ND)

    def _update(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the update of the output, (N, F).

        If `forward` called both `base` and `down`, vLLM would take them for parts of one layer and
        might split `down` over devices.
        """
        mixture = self._mixture
        gates_NE = mixture.scale * top_k_gates(self.router(x_ND), mixture.top_k, mixture.gates)
        hidden_NP = self.down(x_ND)
        gates_NP = gates_NE.to(hidden_NP.dtype).repeat_interleave(mixture.rank, dim=-1)
        return self.up(hidden_NP * gates_NP)


def adapt_layers(layers: nn.ModuleList, mixture: Mixture) -> None:
    """Replace the target linear layers of all decoder layers by `MixtureLinear`, in place."""
    for layer in layers:
        for target in mixture.targets:
            parent = layer.get_submodule(TARGETS[target])
            setattr(parent, target, MixtureLinear(getattr(parent, target), mixture))

"""A linear layer with a routed mixture of low-rank experts.

Dimension letters: N tokens (any number of leading axes), D inputs and F outputs of the linear
layer, E experts, M logits of the router (E, or E + 1 with a threshold), R rank of one expert, P
stacked ranks of all down-projections, U up-projections of a second router, K active experts per
token.
"""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from mixture_transformers.schema import TARGETS, Mixture


def top_k_gates(
    logits_NM: torch.Tensor,
    top_k: int,
    kind: str,
    scores: str = 'softmax',
    offset_M: torch.Tensor | None = None,
    offset_in_gates: bool = False,
) -> torch.Tensor:
    """Return the gates of all experts, which are zero outside the top k.

    Args:
        logits_NM: (N, M) float32, logits of the router.
        top_k: Number of active experts per token, K. Among experts with equal scores, those with
            lower indices win.
        kind: Kind of gates, one of `schema.GATES`.
        scores: Scores that choose the experts, one of `schema.SCORES`.
        offset_M: (M,) float32, bias of the router; None without one.
        offset_in_gates: Whether the bias is part of the gates, not only of the choice.

    Returns:
        (N, E) float32.
    """
    gate_NE, choice_NE = _scores(logits_NM, scores, 0.0 if offset_M is None else offset_M)
    if offset_in_gates:
        gate_NE = choice_NE
    # torch.topk does not define which of several equal values it returns; a stable sort does.
    expert_NK = choice_NE.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    gate_NK = gate_NE.gather(-1, expert_NK)
    if kind == 'equal':
        gate_NK = torch.full_like(gate_NK, 1 / top_k)
    if scores == 'threshold':
        gate_NK = gate_NK * (choice_NE.gather(-1, expert_NK) >= 0)
    if kind == 'renormalized':
        total_N1 = gate_NK.sum(dim=-1, keepdim=True)
        gate_NK = gate_NK / torch.where(total_N1 > 0, total_N1, 1.0)
    return torch.zeros_like(gate_NE).scatter(-1, expert_NK, gate_NK)


def _scores(
    logits_NM: torch.Tensor, scores: str, offset_M: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gate of each expert if it is chosen, and the score that chooses it, (N, E)."""
    if scores == 'threshold':
        probability_NE = logits_NM[..., :-1].softmax(dim=-1)
        fraction_N1 = (logits_NM + offset_M)[..., -1:].sigmoid()
        distance_NE = probability_NE - fraction_N1 / probability_NE.shape[-1]
        return distance_NE, distance_NE
    if scores == 'magnitude':
        return logits_NM.abs(), (logits_NM + offset_M).abs()
    if scores == 'absolute':
        logits_NM = logits_NM.abs()
    gate_NE = logits_NM.sigmoid() if scores == 'sigmoid' else logits_NM.softmax(dim=-1)
    return gate_NE, gate_NE + offset_M


class Offset(nn.Module):
    """Bias of a router for `top_k_gates`.

    It is a module, so that tensor parallelism of transformers does not split it with the router.

    Attributes:
        weight: (M,) float32, zeros in a new model.
    """

    def __init__(self, num_logits: int, device: torch.device | None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_logits, dtype=torch.float32, device=device))


class Router(nn.Module):
    """Router, whose logits are computed in float32.

    This is not an `nn.Linear`, because vLLM replaces each `nn.Linear` and repacks its weight.

    Attributes:
        in_features: Number of inputs D, which row-wise tensor parallelism of transformers reads.
        weight: (M, D) float32. It is random in a new model, with the default standard deviation of
            `transformers`.
        offset: Bias, which is not added to the logits; None without one.
        up: Router of the up-projections, with weight (U, R); None without one.
    """

    def __init__(
        self,
        in_features: int,
        num_logits: int,
        device: torch.device | None = None,
        has_offset: bool = False,
    ):
        super().__init__()
        self.in_features = in_features
        # The dtype is explicit, because a model is built with its own dtype as the default.
        weight_MD = torch.empty(num_logits, in_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(nn.init.normal_(weight_MD, std=0.02))
        # Parts of the router, because transformers and vLLM keep all its parts in float32.
        self.offset = Offset(num_logits, device) if has_offset else None
        self.up: Router | None = None

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, M) float32."""
        with maybe_autocast(x_ND.device.type, enabled=False):
            return nn.functional.linear(x_ND.float(), self.weight.float())


class MixtureLinear(nn.Module):
    """Linear layer with a routed mixture: W x + scale · Σ_t g_t B_t A_t x over the experts t.

    The activations A_t x of all experts are computed in one product, multiplied by the gates g_t,
    and projected up in one product. With a second router, z = Σ_t g_t A_t x is projected up by
    Σ_u h_u(z) B_u, with the softmax h of that router's logits.

    Attributes:
        base: Linear layer with the frozen weight W, (F, D).
        down: Down-projections A_t of all experts, one after the other, (P, D).
        router: Router with weight (M, D).
        up: Up-projections B_t of all experts, side by side, (F, P); or B_u, (F, U · R).
    """

    def __init__(self, base: nn.Linear, mixture: Mixture):
        super().__init__()
        D, F, R, U = base.in_features, base.out_features, mixture.rank, mixture.gates.num_up_experts
        device = base.weight.device
        like_base = {'device': device, 'dtype': base.weight.dtype}
        self.base = base
        self.down = nn.Linear(D, mixture.num_down_projections * R, bias=False, **like_base)
        self.router = Router(D, mixture.num_logits, device, mixture.gates.has_offset)
        self.up = nn.Linear(mixture.num_up_projections * R, F, bias=False, **like_base)
        if U:
            self.router.up = Router(R, U, device)
        self._mixture = mixture

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the output, (N, F) in the dtype of the base layer's output."""
        return self.base(x_ND) + self._update(x_ND)

    def _update(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the update of the output, (N, F).

        If `forward` called both `base` and `down`, vLLM would take them for parts of one layer and
        might split `down` over devices.
        """
        hidden_NP, gates_NE = self.down(x_ND), self._expert_gates(x_ND)
        if self.router.up is not None:
            z_NR = self._weigh(hidden_NP, gates_NE).unflatten(-1, (-1, self._mixture.rank)).sum(-2)
            gates_NU = self.router.up(z_NR).softmax(dim=-1)
            hidden_NP, gates_NE = torch.cat([z_NR] * gates_NU.shape[-1], dim=-1), gates_NU
        return self.up(self._weigh(hidden_NP, self._mixture.scale * gates_NE))

    def _expert_gates(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the gates of the experts and of the residual, float32."""
        mixture, gates = self._mixture, self._mixture.gates
        offset_M = self.router.offset.weight if self.router.offset else None
        gates_NE = gates.factor * top_k_gates(
            self.router(x_ND),
            mixture.top_k,
            gates.kind,
            gates.scores,
            offset_M,
            gates.offset_in_gates,
        )
        return nn.functional.pad(gates_NE, (0, gates.num_residual_experts), value=1.0)

    def _weigh(self, hidden_NP: torch.Tensor, gates_NE: torch.Tensor) -> torch.Tensor:
        """Return the activations, multiplied by the gates of their experts."""
        return hidden_NP * gates_NE.to(hidden_NP.dtype).repeat_interleave(
            self._mixture.rank, dim=-1
        )


def adapt_layers(layers: nn.ModuleList, mixture: Mixture) -> None:
    """Replace the target linear layers of all decoder layers by `MixtureLinear`, in place."""
    for layer in layers:
        for target in mixture.targets:
            parent = layer.get_submodule(TARGETS[target])
            setattr(parent, target, MixtureLinear(getattr(parent, target), mixture))

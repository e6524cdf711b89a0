"""Dense experts: the factors of each expert, multiplied out to two projections.

A mixture adapts a linear layer W to W x + s · Σ_t G_t(x) B_t A_t x, with the scale s and the gate
G_t of expert t. The structures compute B_t A_t from several factors, some of which the experts
share. Text generation and other programs need only A_t, B_t and the router's weight. With D²MoRA,
text generation also needs the weight of the second router, and the numbers of A_t and B_t differ.

Dimension letters: L layers, E experts, U up-projections (E without a second router), D inputs and F
outputs of a linear layer, R rank of one expert, M logits of a router.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from malora_jax.adapters.config import AdapterConfig


class DenseExperts(NamedTuple):
    """Experts of one linear layer, in all transformer layers: NumPy or JAX arrays.

    The experts of a residual, which every token uses with the gate 1, come after the others.
    Without a router, there is one expert before them.

    Attributes:
        down: (L, E, D, R), down-projection A_t of each expert, transposed.
        up: (L, U, R, F), up-projection B_t of each expert, transposed.
        router: (L, D, M), weight of the router, transposed, for the experts that it chooses from;
            zeros for a single expert.
        router_offset: (L, M), bias for `RouterConfig.route`; None if the router has none.
        up_router: (L, R, U), weight of the second router, transposed; None without one.
    """

    down: Any
    up: Any
    router: Any
    router_offset: Any = None
    up_router: Any = None

    def stacked_down(self) -> Any:
        """Return the experts' A_t below each other, (L, E · R, D)."""
        L, E, D, R = self.down.shape
        return self.down.swapaxes(2, 3).reshape(L, E * R, D)

    def stacked_up(self) -> Any:
        """Return the experts' B_t next to each other, (L, F, U · R)."""
        L, U, R, F = self.up.shape
        return self.up.reshape(L, U * R, F).swapaxes(1, 2)


def fold(adapter: AdapterConfig, leaves: Mapping[str, Any]) -> DenseExperts:
    """Multiply the factors of each expert out to one down-projection and one up-projection.

    Args:
        adapter: Settings of the adapter.
        leaves: Parameters of one linear layer in all transformer layers, (L, ...), by name: NumPy
            or JAX arrays, whose type and dtype the result has.

    Raises:
        UserError: An expert of the adapter's structure is not a product of two matrices.
    """
    down, up = adapter.structure.projections(leaves)
    if not adapter.has_router:
        # Every token uses all experts with the gate 1, and they share the down-projection.
        up = up.sum(axis=1, keepdims=True)
    router, offset = 0 * down[:, 0, :, :1], None
    if adapter.has_router:
        first = leaves[adapter.structure.factors[0]]
        router = adapter.router.weight(leaves) if adapter.router.has_weight else first
        if adapter.router.input != 'x':
            # The router reads the product of the input with the shared first factor.
            router = first @ router
        offset = adapter.router.offset(leaves)
    if down.shape[1] == 1:
        # Experts may share one down-projection.
        down = down.repeat(up.shape[1], axis=1)
    residual = adapter.structure.residual(leaves)
    if residual is not None:
        concat = down.__array_namespace__().concat
        down, up = (concat(both, axis=1) for both in zip((down, up), residual, strict=True))
    return DenseExperts(down, up, router, offset, leaves.get('up_router'))

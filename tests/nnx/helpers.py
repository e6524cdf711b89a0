"""Helpers for the tests of adapters on NNX models."""

import numpy as np
from flax import nnx


def arrays(model: nnx.Module, kind=nnx.Param) -> dict[str, np.ndarray]:
    """Return copies of a model's variables of one kind, by path."""
    return {
        '/'.join(map(str, path)): np.array(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(model, kind))
    }

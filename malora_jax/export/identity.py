"""Which base and tokenizer a trained model belongs to, as short texts that can be compared."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.trees import named_leaves
from malora_jax.distributed import rules

# Values of each leaf that are looked at, spread evenly.
_SAMPLES = 1024


def base_fingerprint(params: Any) -> str:
    """Of a base's weights: names, shapes, and a sample of each leaf in bfloat16.

    So it is the same whether they are kept in float32 or in bfloat16; other weights of the same
    shape, such as those of another version, have another.
    """
    digest = hashlib.sha256()
    samples = jax.device_get(_samples(params))
    for (path, leaf), sample in zip(named_leaves(params), jax.tree.leaves(samples), strict=True):
        digest.update(f'{path} {leaf.shape}'.encode() + sample.tobytes())
    return digest.hexdigest()[:32]


@jax.jit
def _samples(params: Any) -> Any:
    def sample(leaf: jax.Array) -> jax.Array:
        places = np.linspace(0, leaf.size - 1, min(leaf.size, _SAMPLES)).astype(np.int64)
        # By axis: flat, a leaf that is split over devices would have to be joined.
        return leaf[np.unravel_index(places, leaf.shape)].astype(jnp.bfloat16)

    return rules.replicate(jax.tree.map(sample, params))


def text_fingerprint(text: str) -> str:
    """Of a tokenizer's definition, or any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(data: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(data).hexdigest()

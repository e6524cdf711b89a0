"""Fingerprints that identify the base model and the tokenizer of a trained adapter."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malora_jax.adapters.trees import named_leaves
from malora_jax.distributed import sharding

# Number of evenly spaced values of each leaf that enter the fingerprint.
_SAMPLES_PER_LEAF = 1024


def base_fingerprint(params: Any) -> str:
    """Return the fingerprint of a base model's weights, 32 hexadecimal digits.

    The fingerprint is a hash of the names, the shapes, and a sample of each leaf in bfloat16. The
    same weights in float32 and in bfloat16 therefore have the same fingerprint. Different weights
    of the same shape, such as another version of the model, have different fingerprints.

    Args:
        params: The decoder's `params` collection.
    """
    digest = hashlib.sha256()
    samples = jax.device_get(_sample_leaves(params))
    for (path, leaf), sample in zip(named_leaves(params), jax.tree.leaves(samples), strict=True):
        digest.update(f'{path} {leaf.shape}'.encode() + sample.tobytes())
    return digest.hexdigest()[:32]


@jax.jit
def _sample_leaves(params: Any) -> Any:
    def sample(leaf: jax.Array) -> jax.Array:
        indices = np.linspace(0, leaf.size - 1, min(leaf.size, _SAMPLES_PER_LEAF)).astype(np.int64)
        # Index by axis, because flattening would gather a leaf that is sharded over devices.
        return leaf[np.unravel_index(indices, leaf.shape)].astype(jnp.bfloat16)

    return sharding.replicate(jax.tree.map(sample, params))


def text_fingerprint(text: str) -> str:
    """Return the fingerprint of a text, such as a tokenizer's definition: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def content_digest(data: bytes) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()

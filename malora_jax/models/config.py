"""What a base model is: one frozen dataclass and the presets."""

import dataclasses
from typing import Any

from malora_jax import errors

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-type decoder.

    Attributes:
        name: the preset's name.
        vocab_size: V.
        width: D, width of the residual stream.
        hidden: F, width of the MLP.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: K, key/value heads; each serves H / K query heads.
        head_width: C.
        context: positions the model was trained on.
        rope_theta: base of the rotary embedding's wavelengths.
        norm_epsilon: added to the mean square in RMSNorm.
        tied: whether the head is the embedding.
        dtype: of activations and of the frozen weights. Adapters and router stay float32.

    Raises:
        UserError: heads that do not divide, an odd head width, or an unknown dtype.
    """

    name: str
    vocab_size: int
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    context: int
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied: bool = False
    dtype: str = 'float32'

    def __post_init__(self):
        errors.check_types('model', self)
        if self.num_heads % self.num_kv_heads:
            right = f'a multiple of num_kv_heads = {self.num_kv_heads}'
            raise errors.out_of_range('model.num_heads', self.num_heads, right)
        if self.head_width % 2:
            raise errors.out_of_range('model.head_width', self.head_width, 'even')
        if self.dtype not in DTYPES:
            raise errors.unknown_name('model.dtype', self.dtype, DTYPES)


PRESETS: dict[str, dict[str, Any]] = {
    'smollm2-135m': dict(
        vocab_size=49152,
        width=576,
        hidden=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        context=8192,
        rope_theta=100000.0,
        tied=True,
    ),
    'llama2-7b': dict(
        vocab_size=32000,
        width=4096,
        hidden=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_width=128,
        context=4096,
    ),
    # For tests: trains in a second, with a byte-level vocabulary.
    'tiny': dict(
        vocab_size=300,
        width=64,
        hidden=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_width=16,
        context=2048,
        rope_theta=5000.0,
        norm_epsilon=1e-4,
        tied=True,
    ),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The model of that name.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise errors.unknown_name('model', name, PRESETS)
    return ModelConfig(**({'name': name} | PRESETS[name] | overrides))

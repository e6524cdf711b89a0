"""What a base model is: one frozen dataclass and the presets."""

import dataclasses
from typing import Any

from malora_jax import errors
from malora_jax.models.quantize import KINDS

DTYPES = ('float32', 'bfloat16')
# Tensors are looked for layer by layer; no model that is known has 1,000.
_MOST_LAYERS = 10_000


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 and later stretch the rotary embedding beyond the context of their start.

    Attributes:
        factor: what the frequencies of long wavelengths are divided by.
        low_frequency_factor: wavelengths above `original_context` / this are stretched by the
            whole factor.
        high_frequency_factor: wavelengths below `original_context` / this stay as they are; in
            between, the two are mixed.
        original_context: positions of the first stage of training.

    Raises:
        UserError: a number that is not positive, or bounds of wavelengths in the wrong order.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int

    def __post_init__(self):
        errors.check_types('model.rope_scaling', self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise errors.out_of_range(f'model.rope_scaling.{field.name}', value, 'positive')
        if self.high_frequency_factor <= self.low_frequency_factor:
            name = 'model.rope_scaling.high_frequency_factor'
            right = f'above low_frequency_factor = {self.low_frequency_factor}'
            raise errors.out_of_range(name, self.high_frequency_factor, right)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder of Llama's kind: Llama, Mistral, Qwen2, Qwen3.

    Attributes:
        name: the preset's name, or that of the weights.
        vocab_size: V.
        width: D, width of the residual stream.
        hidden: F, width of the MLP.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: K, key/value heads; each serves H / K query heads.
        head_width: C.
        context: positions the model was trained on.
        rope_theta: base of the rotary embedding's wavelengths.
        rope_scaling: how the rotary embedding is stretched; None = not at all.
        norm_epsilon: added to the mean square in RMSNorm.
        qkv_bias: whether the projections to q, k and v have a bias (Qwen2).
        qk_norm: whether each head of q and k is normalised before its rotation (Qwen3).
        tied: whether the head is the embedding.
        dtype: of activations and of the frozen weights. Adapters and router stay float32.
        quantize: how the kernels of the linears are kept instead, one of `quantize.KINDS`;
            '' = as the other weights.

    Raises:
        UserError: a number that is not positive, heads that do not divide, an odd head width, or
            an unknown dtype or way to quantise.
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
    rope_scaling: Llama3Scaling | None = None
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    dtype: str = 'float32'
    quantize: str = ''

    def __post_init__(self):
        errors.check_types('model', self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and value <= 0:
                raise errors.out_of_range(f'model.{field.name}', value, 'positive')
        if self.num_layers > _MOST_LAYERS:
            right = f'at most {_MOST_LAYERS:,}'
            raise errors.out_of_range('model.num_layers', self.num_layers, right)
        if self.num_heads % self.num_kv_heads:
            right = f'a multiple of num_kv_heads = {self.num_kv_heads}'
            raise errors.out_of_range('model.num_heads', self.num_heads, right)
        if self.head_width % 2:
            raise errors.out_of_range('model.head_width', self.head_width, 'even')
        if self.dtype not in DTYPES:
            raise errors.unknown_name('model.dtype', self.dtype, DTYPES)
        if self.quantize not in ('', *KINDS):
            raise errors.unknown_name('model.quantize', self.quantize, KINDS)


_COLUMNS = (
    'vocab_size',
    'width',
    'hidden',
    'num_layers',
    'num_heads',
    'num_kv_heads',
    'head_width',
    'context',
)


def _sizes(*columns: int, **family: Any) -> dict[str, Any]:
    return dict(zip(_COLUMNS, columns, strict=True)) | family


def _llama3(factor: float) -> dict[str, Any]:
    return dict(rope_theta=5e5, rope_scaling=Llama3Scaling(factor, 1.0, 4.0, 8192))


_QWEN2 = dict(rope_theta=1e6, norm_epsilon=1e-6, qkv_bias=True)
_QWEN3 = dict(rope_theta=1e6, norm_epsilon=1e-6, qk_norm=True)
_SMOLLM2 = dict(rope_theta=1e5, tied=True)

# The columns, then what a family differs in from Llama 2. Where base and instruct models differ in
# context, the shorter one.
PRESETS: dict[str, dict[str, Any]] = {
    'llama2-7b': _sizes(32000, 4096, 11008, 32, 32, 32, 128, 4096),
    'llama2-13b': _sizes(32000, 5120, 13824, 40, 40, 40, 128, 4096),
    'llama2-70b': _sizes(32000, 8192, 28672, 80, 64, 8, 128, 4096),
    'llama3.1-8b': _sizes(128256, 4096, 14336, 32, 32, 8, 128, 131072, **_llama3(8.0)),
    'llama3.1-70b': _sizes(128256, 8192, 28672, 80, 64, 8, 128, 131072, **_llama3(8.0)),
    'llama3.2-1b': _sizes(128256, 2048, 8192, 16, 32, 8, 64, 131072, **_llama3(32.0), tied=True),
    'llama3.2-3b': _sizes(128256, 3072, 8192, 28, 24, 8, 128, 131072, **_llama3(32.0), tied=True),
    'qwen2.5-0.5b': _sizes(151936, 896, 4864, 24, 14, 2, 64, 32768, **_QWEN2, tied=True),
    'qwen2.5-7b': _sizes(152064, 3584, 18944, 28, 28, 4, 128, 32768, **_QWEN2),
    'qwen3-0.6b': _sizes(151936, 1024, 3072, 28, 16, 8, 128, 32768, **_QWEN3, tied=True),
    'qwen3-8b': _sizes(151936, 4096, 12288, 36, 32, 8, 128, 32768, **_QWEN3),
    'mistral-7b': _sizes(32768, 4096, 14336, 32, 32, 8, 128, 32768, rope_theta=1e6),
    'smollm2-135m': _sizes(49152, 576, 1536, 30, 9, 3, 64, 8192, **_SMOLLM2),
    'smollm2-360m': _sizes(49152, 960, 2560, 32, 15, 5, 64, 8192, **_SMOLLM2),
    'smollm2-1.7b': _sizes(49152, 2048, 8192, 24, 32, 32, 64, 8192, rope_theta=1.3e5, tied=True),
    # For tests: trains in a second, with a byte-level vocabulary.
    'tiny': _sizes(300, 64, 96, 2, 4, 2, 16, 2048, rope_theta=5000.0, norm_epsilon=1e-4, tied=True),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The model of that name.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise errors.unknown_name('model', name, PRESETS)
    return ModelConfig(**({'name': name} | PRESETS[name] | overrides))

"""Configuration of a base model: the dataclass `ModelConfig` and its presets."""

import dataclasses
from typing import Any

from malora_jax import errors
from malora_jax.models.quantize import QUANT_FORMATS

DTYPES = ('float32', 'bfloat16')
# Limits the number of layers that a corrupt file can claim, because the loader looks up tensors
# layer by layer. No known model has 1,000 layers.
_MAX_LAYERS = 10_000


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 and later, which extends the context of pretraining.

    Attributes:
        factor: Divisor of the frequencies with long wavelengths.
        low_frequency_factor: Frequencies whose wavelength is above
            `original_context` / `low_frequency_factor` are divided by the whole factor.
        high_frequency_factor: Frequencies whose wavelength is below
            `original_context` / `high_frequency_factor` stay unchanged. Frequencies in between are
            interpolated.
        original_context: Context length of pretraining, in tokens, before the extension.

    Raises:
        UserError: A number is not positive, or `high_frequency_factor` is not above
            `low_frequency_factor`.
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
            expected = f'above low_frequency_factor = {self.low_frequency_factor}'
            raise errors.out_of_range(name, self.high_frequency_factor, expected)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture and dtypes of a Llama-style decoder: Llama, Mistral, Qwen2 or Qwen3.

    Attributes:
        name: Name of the preset, or of the weights.
        vocab_size: V, number of rows of the embedding.
        width: D, model dimension (width of the residual stream).
        hidden: F, hidden dimension of the MLP.
        num_layers: L, number of layers.
        num_heads: H, number of query heads.
        num_kv_heads: K, number of key/value heads; each serves H / K query heads.
        head_width: C, dimension of a head.
        context: Context length in tokens.
        rope_theta: Base of the wavelengths of the rotary position embedding (RoPE).
        rope_scaling: Scaling of RoPE to a longer context; None if there is none.
        norm_epsilon: Epsilon that RMSNorm adds to the mean square.
        qkv_bias: Whether the q, k and v projections have a bias (Qwen2).
        qk_norm: Whether each head of q and k is normalized before RoPE (Qwen3).
        tied: Whether the output head shares the matrix of the embedding.
        dtype: Dtype of activations and frozen weights, one of `DTYPES`. Adapters, routers and norms
            have float32 parameters in any case (mixed precision).
        quantize: Quantization format of the linears' kernels, one of `quantize.QUANT_FORMATS`; ''
            stores them in `dtype`.

    Raises:
        UserError: A number is out of range, `num_heads` is not a multiple of `num_kv_heads`, the
            head width is odd, or a dtype or quantization format is unknown.

    Example:
        `preset` fills in the fields of a published model:

            config = preset('llama3.1-8b', dtype='bfloat16', quantize='nf4')
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
        if self.num_layers > _MAX_LAYERS:
            expected = f'at most {_MAX_LAYERS:,}'
            raise errors.out_of_range('model.num_layers', self.num_layers, expected)
        if self.num_heads % self.num_kv_heads:
            expected = f'a multiple of num_kv_heads = {self.num_kv_heads}'
            raise errors.out_of_range('model.num_heads', self.num_heads, expected)
        if self.head_width % 2:
            raise errors.out_of_range('model.head_width', self.head_width, 'even')
        if self.dtype not in DTYPES:
            raise errors.unknown_name('model.dtype', self.dtype, DTYPES)
        if self.quantize not in ('', *QUANT_FORMATS):
            raise errors.unknown_name('model.quantize', self.quantize, QUANT_FORMATS)


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

# Values of the fields in _COLUMNS, then other fields that differ from Llama 2. If the base and the
# instruct model differ in context length, the shorter length is used.
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
    # Randomly initialized model for tests: trains in a second, with a byte-level vocabulary.
    'tiny': _sizes(300, 64, 96, 2, 4, 2, 16, 2048, rope_theta=5000.0, norm_epsilon=1e-4, tied=True),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a published model.

    Args:
        name: Key of `PRESETS`.
        **overrides: Fields of `ModelConfig` that replace those of the preset.

    Raises:
        UserError: There is no such preset, or a field is out of range.

    Example:
        Llama 3.2 1B in bfloat16:

            config = preset('llama3.2-1b', dtype='bfloat16')
    """
    if name not in PRESETS:
        raise errors.unknown_name('model', name, PRESETS)
    return ModelConfig(**({'name': name} | PRESETS[name] | overrides))

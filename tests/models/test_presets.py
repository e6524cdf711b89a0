"""The presets' sizes, compared with the published totals, and Llama 3's RoPE scaling."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.errors import UserError
from malora_jax.models import PRESETS, Decoder, preset
from malora_jax.models.attention import apply_rope
from malora_jax.models.config import Llama3Scaling
from malora_jax.models.loading import model_hub
from malora_jax.training.plan import count_model_parameters

TOTALS = {
    'llama2-7b': 6_738_415_616,
    'llama2-13b': 13_015_864_320,
    'llama2-70b': 68_976_648_192,
    'llama3.1-8b': 8_030_261_248,
    'llama3.1-70b': 70_553_706_496,
    'llama3.2-1b': 1_235_814_400,
    'llama3.2-3b': 3_212_749_824,
    'qwen2.5-0.5b': 494_032_768,
    'qwen2.5-7b': 7_615_616_512,
    'qwen3-0.6b': 596_049_920,
    'qwen3-8b': 8_190_735_360,
    'mistral-7b': 7_248_023_552,
    'smollm2-135m': 134_515_008,
    'smollm2-360m': 361_821_120,
    'smollm2-1.7b': 1_711_376_384,
}


def test_every_preset_but_the_tests_has_weights_on_the_hub():
    assert set(PRESETS) - {'tiny'} == set(model_hub.REPO_IDS) == set(TOTALS)
    assert all(model_hub.is_repo_id(name) for name in model_hub.REPO_IDS.values())
    assert len(set(model_hub.REPO_IDS.values())) == len(model_hub.REPO_IDS)


@pytest.mark.parametrize('name', TOTALS)
def test_number_of_parameters(name):
    assert count_model_parameters(Decoder(preset(name)))['base'] == TOTALS[name]


# RoPE scaling.

SCALING = Llama3Scaling(8.0, 1.0, 4.0, 256)


def scaled_angles(width: int, theta: float, scaling: Llama3Scaling) -> np.ndarray:
    """Return radians per position and pair, from the definition of the three wavelength bands."""
    angles = []
    for i in range(width // 2):
        angle = theta ** (-2 * i / width)
        wavelength = 2 * np.pi / angle
        if wavelength > scaling.original_context / scaling.low_frequency_factor:
            angle /= scaling.factor
        elif wavelength >= scaling.original_context / scaling.high_frequency_factor:
            share = (scaling.original_context / wavelength - scaling.low_frequency_factor) / (
                scaling.high_frequency_factor - scaling.low_frequency_factor
            )
            angle = (1 - share) * angle / scaling.factor + share * angle
        angles.append(angle)
    return np.array(angles)


def test_rotation_with_scaling():
    width, theta = 64, 5000.0
    angles = scaled_angles(width, theta, SCALING)
    plain = theta ** (-2 * np.arange(width // 2) / width)
    kept, divided = np.isclose(angles, plain), np.isclose(angles, plain / 8)
    assert kept.sum() > 2 and divided.sum() > 2 and (~kept & ~divided).sum() > 2
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 2, width)).astype(np.float32)
    positions = np.array([[0, 1, 255, 256, 700]])
    turn = positions[0, :, None] * angles
    pairs = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * np.exp(1j * turn)[None, :, None]
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    found = np.asarray(apply_rope(x, positions, theta, SCALING))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(np.asarray(apply_rope(x, positions, theta)) - expected).max() > 0.1
    # bfloat16 has 8 bits: angles computed in it would be wrong by whole turns, but the entries are
    # only off by 1 / 256.
    rough = np.asarray(apply_rope(x.astype(jnp.bfloat16), positions, theta, SCALING), np.float32)
    np.testing.assert_allclose(rough, expected, rtol=0, atol=2**-5)


@pytest.mark.parametrize(
    'field, value, right',
    [
        ('factor', 0.0, 'positive'),
        ('low_frequency_factor', -1.0, 'positive'),
        ('high_frequency_factor', 1.0, 'above low_frequency_factor = 1.0'),
        ('original_context', 0, 'positive'),
        ('original_context', 64.5, 'a whole number'),
    ],
)
def test_scaling_that_makes_no_sense(field, value, right):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(SCALING, **{field: value})
    assert str(caught.value) == f'model.rope_scaling.{field} is {value}; it must be {right}.'


@pytest.mark.parametrize(
    'field, value, right',
    [
        ('num_layers', 0, 'positive'),
        ('num_kv_heads', 0, 'positive'),
        ('norm_epsilon', 0.0, 'positive'),
        ('head_width', 15, 'even'),
        ('num_heads', 3, 'a multiple of num_kv_heads = 2'),
        ('context', 64.0, 'a whole number'),
    ],
)
def test_sizes_that_make_no_sense(field, value, right):
    with pytest.raises(UserError) as caught:
        preset('tiny', **{field: value})
    assert str(caught.value) == f'model.{field} is {value}; it must be {right}.'

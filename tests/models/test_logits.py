"""Logits against `transformers` on the same dequantized weights; see fixtures/make_smollm2.py."""

import hashlib

import jax
import numpy as np
import pytest

from malora_jax.models import Decoder, preset
from malora_jax.models.generate import Generator
from malora_jax.models.loading.base_model import LoadedBase, find_weights, load_base
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.params import load_params
from tests.helpers.models import logits_of
from tests.helpers.paths import FIXTURES
from tests.helpers.tiny_gguf import write_tiny_gguf

# Absolute tolerance for logits whose standard deviation is a few units; float32 itself is off by
# 6e-5.
TOLERANCE = 1e-4


def recorded(name: str):
    return np.load(FIXTURES / name)


@pytest.fixture(scope='module')
def smollm2() -> LoadedBase:
    return load_base(preset('smollm2-135m'))


@pytest.fixture(scope='module')
def expected():
    return recorded('smollm2_logits.npz')


@pytest.fixture(scope='module')
def passage_logits(smollm2, expected) -> np.ndarray:
    model = Decoder(smollm2.config)
    return logits_of(model, {'params': smollm2.params}, expected['tokens'][None])[0]


def test_tiny_logits(tmp_path):
    write_tiny_gguf(tmp_path / 'tiny.gguf', seed=0, tensor_types='F32')
    config = preset('tiny')
    params = load_params(GGUFFile(tmp_path / 'tiny.gguf'), config)
    fixture = recorded('tiny_llama_logits.npz')
    logits = logits_of(Decoder(config), {'params': params}, fixture['tokens'])
    np.testing.assert_allclose(logits, fixture['logits'], rtol=0, atol=TOLERANCE)


def test_the_installed_weights_are_the_recorded_ones(expected):
    content = find_weights(preset('smollm2-135m'), '').read_bytes()
    assert hashlib.sha256(content).hexdigest() == str(expected['gguf_sha256'])


def test_smollm2_logits_up_to_and_past_position_512(passage_logits, expected):
    assert expected['positions'].max() > 512
    chosen = passage_logits[expected['positions']][:, expected['vocabulary_ids']]
    np.testing.assert_allclose(chosen, expected['logits'], rtol=0, atol=TOLERANCE)


def test_smollm2_argmax_at_every_position(passage_logits, expected):
    np.testing.assert_array_equal(passage_logits.argmax(axis=-1), expected['argmax'])


def test_smollm2_log_probability_of_every_next_token(passage_logits, expected):
    log_probs = np.asarray(jax.nn.log_softmax(passage_logits, axis=-1))
    following = log_probs[np.arange(699), expected['tokens'][1:]]
    np.testing.assert_allclose(following, expected['next_log_prob'], rtol=0, atol=TOLERANCE)


def test_smollm2_chat_logits(smollm2, expected):
    logits = logits_of(
        Decoder(smollm2.config), {'params': smollm2.params}, expected['chat_tokens'][None]
    )[0]
    np.testing.assert_array_equal(logits.argmax(axis=-1), expected['chat_argmax'])
    chosen = logits[expected['chat_positions']][:, expected['vocabulary_ids']]
    np.testing.assert_allclose(chosen, expected['chat_logits'], rtol=0, atol=TOLERANCE)


def test_smollm2_answers_a_question(smollm2, expected):
    end = smollm2.tokenizer.token_to_id('<|im_end|>')
    continuation = expected['chat_continuation'].tolist()
    generator = Generator(Decoder(smollm2.config), end, batch_size=1, max_new_tokens=12)
    prompt = smollm2.tokenizer.encode(str(expected['chat_text']))
    assert prompt == expected['chat_tokens'].tolist()
    (answer,) = generator({'params': smollm2.params}, [prompt])
    assert answer == continuation[: continuation.index(end)]
    assert smollm2.tokenizer.decode(answer) == 'The capital of France is Paris.'

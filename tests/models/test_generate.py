import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import logits_of, random_variables, small_method, tiny_model

from malora_jax.errors import UserError
from malora_jax.models import Decoder
from malora_jax.models.generate import Generator

NO_END = 300  # No token of the vocabulary: generation runs to its limit.
PLACES = 40
MODELS = {
    name: tiny_model(small_method(name) if name != 'base' else None)
    for name in ('base', 'lora', 'malora')
}
VARIABLES = {name: random_variables(model, seed=1) for name, model in MODELS.items()}


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, length).tolist() for length in lengths]


def uncached(model: Decoder, variables, prompt: list[int], count: int) -> list[int]:
    """The continuation by running the whole sequence anew for each token."""
    tokens = list(prompt)
    for _ in range(count):
        row = np.zeros((1, PLACES), np.int32)
        row[0, : len(tokens)] = tokens
        segments = (jnp.arange(PLACES) < len(tokens)).astype(jnp.int32)[None]
        logits = logits_of(model, variables, row, segments=segments)
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def generate(name: str, questions, *, end=NO_END, batch=4, new=12, bucket=16, limit=None):
    generator = Generator(MODELS[name], end, batch_size=batch, max_new_tokens=new, bucket=bucket)
    return generator(VARIABLES[name], questions, limit)


@pytest.mark.parametrize('name', MODELS)
def test_cached_equals_uncached(name):
    questions = prompts(5, 16, 1, 11)
    expected = [uncached(MODELS[name], VARIABLES[name], prompt, 12) for prompt in questions]
    assert len({tuple(answer) for answer in expected}) == 4
    assert generate(name, questions) == expected


def test_the_adapter_changes_the_answers():
    questions = prompts(5, 16, 1, 11)
    assert generate('malora', questions) != generate('base', questions)


@pytest.mark.parametrize('name', MODELS)
def test_batched_equals_single(name):
    # Uneven, unsorted, and two batches of which the second has rows without a prompt.
    questions = prompts(9, 2, 15, 1, 7, 3)
    batched = generate(name, questions)
    assert [len(answer) for answer in batched] == [12] * 6
    assert batched == [generate(name, [prompt], batch=1)[0] for prompt in questions]


def test_the_bucket_changes_nothing():
    questions = prompts(9, 2, 5)
    expected = generate('malora', questions, bucket=9)
    for bucket in (1, 32):
        assert generate('malora', questions, bucket=bucket) == expected


def test_limit():
    questions = prompts(4, 8)
    whole = generate('malora', questions)
    for limit in (1, 5, 12):
        assert generate('malora', questions, limit=limit) == [a[:limit] for a in whole]
    assert generate('malora', questions, limit=99) == whole


def test_an_answer_stops_before_the_end_token():
    questions = prompts(4, 8, 6, seed=5)
    whole = generate('malora', questions)
    # A token that ends one answer in its middle, and others elsewhere or never.
    end = whole[0][5]
    expected = [answer[: answer.index(end)] if end in answer else answer for answer in whole]
    assert len(expected[0]) <= 5
    assert max(map(len, expected)) > len(expected[0])
    assert generate('malora', questions, end=end) == expected


def test_an_answer_may_be_empty():
    (prompt,) = prompts(6)
    end = uncached(MODELS['malora'], VARIABLES['malora'], prompt, 1)[0]
    assert generate('malora', [prompt], end=end) == [[]]


def test_no_prompts_no_answers():
    assert generate('malora', []) == []


def test_prompt_and_answer_must_fit_into_the_context():
    model = tiny_model(context=20)
    generator = Generator(model, NO_END, batch_size=2, max_new_tokens=8, bucket=8)
    assert len(generator(VARIABLES['base'], prompts(12, 3))[0]) == 8
    assert len(generator(VARIABLES['base'], prompts(14), limit=6)[0]) == 6
    with pytest.raises(UserError) as caught:
        generator(VARIABLES['base'], prompts(3, 13))
    assert str(caught.value) == (
        'A prompt of 13 tokens and an answer of 8 do not fit into the context of tiny, 20.'
    )

"""Continuous batching: each request gets the tokens that it would get alone, in any slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.errors import UserError
from malora_jax.models import decoding, prefill
from malora_jax.models.engine import STEPS_PER_CALL, Engine, GenerationRequest, RequestError
from malora_jax.models.next_token import NUM_TOP_LOGPROBS
from tests.helpers.models import (
    logits_of,
    prompts,
    random_variables,
    small_method,
    tiny_model,
)

NO_END = 300
MODEL = tiny_model(small_method('malora'))
VARIABLES = random_variables(MODEL, seed=1)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


def engine_of(name: str = 'malora', rows: int = 2, ends=(NO_END,), variables=None) -> Engine:
    model = MODEL if name == 'malora' else tiny_model(small_method(name))
    return Engine(model, variables or random_variables(model, seed=1), ends, rows)


def finish(engine: Engine) -> dict[int, tuple[list, str]]:
    """Run all requests, and return the tokens and the finish reason by request number."""
    tokens, reasons = {}, {}
    while not engine.is_idle:
        for news in engine.step():
            tokens.setdefault(news.request_id, []).extend(news.tokens)
            if news.finish_reason:
                assert news.request_id not in reasons
                reasons[news.request_id] = news.finish_reason
    return {number: (found, reasons[number]) for number, found in tokens.items()}


def ids(tokens) -> list[int]:
    return [token.id for token in tokens]


def alone(prompt: list[int], limit: int, **how) -> list[int]:
    engine = engine_of(rows=1, variables=VARIABLES)
    engine.submit(GenerationRequest(prompt, limit, **how))
    ((found, _),) = finish(engine).values()
    return ids(found)


@pytest.mark.parametrize('name', ['lora', 'dora', 'malora'])
def test_stacked_layers_write_what_those_apart_do(name, monkeypatch):
    """A scan over stacked layers (accelerators) gives the tokens of separate layers (CPUs).

    The engine decodes all methods in one form, which tests/models/test_adapter_bank.py compares for
    each method: without a router, with factors of the outputs, or with a router.
    """
    found = []
    for backend in ('cpu', 'tpu'):
        monkeypatch.setattr(jax, 'default_backend', lambda backend=backend: backend)
        engine = engine_of(name)
        for prompt in prompts(5, 9, 3):
            engine.submit(GenerationRequest(prompt, 2 * STEPS_PER_CALL))
        assert (engine._layers is None) == (backend == 'tpu')
        found.append({number: ids(tokens) for number, (tokens, _) in finish(engine).items()})
    assert found[0] == found[1]
    assert all(len(tokens) == 2 * STEPS_PER_CALL for tokens in found[0].values())


def test_log_probabilities_are_those_of_the_whole_text():
    (prompt,) = prompts(7)
    engine = engine_of(rows=3, variables=VARIABLES)
    engine.submit(GenerationRequest(prompt, STEPS_PER_CALL + 3, wants_logprobs=True))
    ((tokens, _),) = finish(engine).values()
    logits = logits_of(MODEL, VARIABLES, [prompt + ids(tokens)])[0, len(prompt) - 1 : -1]
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    for token, of_place in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(token.log_probability, of_place[token.id], atol=2e-5)
        best = np.argsort(-of_place)[:NUM_TOP_LOGPROBS]
        assert [other for other, _ in token.top_logprobs] == best.tolist()
        found = [log_probability for _, log_probability in token.top_logprobs]
        np.testing.assert_allclose(found, of_place[best], atol=2e-5)


def test_heat_changes_no_log_probability():
    (prompt,) = prompts(7)
    engine = engine_of(rows=1, variables=VARIABLES)
    engine.submit(
        GenerationRequest(prompt, 4, temperature=3.0, top_k=50, top_p=0.9, key=jax.random.key(3))
    )
    ((tokens, _),) = finish(engine).values()
    assert ids(tokens) != alone(prompt, 4)
    logits = logits_of(MODEL, VARIABLES, [prompt + ids(tokens)])[0, len(prompt) - 1 : -1]
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))[np.arange(4), ids(tokens)]
    np.testing.assert_allclose([t.log_probability for t in tokens], expected, atol=2e-5)
    assert tokens[0].top_logprobs == []


def test_each_text_has_its_own_settings():
    """Two slots decode greedy and sampled requests of different lengths."""
    questions, limits = prompts(5, 16, 1, 11, 4), (3, 30, 12, 1, 20)
    hows = [
        {},
        dict(temperature=0.8, top_p=0.9, key=jax.random.key(1)),
        dict(temperature=1.5, top_k=5, key=jax.random.key(2)),
        {},
        dict(temperature=0.8, key=jax.random.key(1)),
    ]
    expected = [alone(q, n, **how) for q, n, how in zip(questions, limits, hows, strict=True)]
    engine = engine_of(variables=VARIABLES)
    for question, limit, how in zip(questions, limits, hows, strict=True):
        engine.submit(GenerationRequest(question, limit, **how))
    found = finish(engine)
    assert [ids(found[number][0]) for number in range(1, 6)] == expected
    assert {reason for _, reason in found.values()} == {'length'}
    assert [len(tokens) for tokens in expected] == list(limits)


def test_slots_and_cache_grow_around_running_requests():
    short, long, other = prompts(5, 200, 9)
    engine = engine_of(rows=32, variables=VARIABLES)
    outputs, sizes = [], []
    for request, times in (
        (GenerationRequest(short, 50), 1),
        (GenerationRequest(long, 5), 1),
        (GenerationRequest(other, 20), 9),
    ):
        for _ in range(times):
            engine.submit(request)
        outputs += engine.step()
        sizes.append(engine._state.sizes)
    assert sizes == [(1, 64), (8, 256), (32, 256)]
    while not engine.is_idle:
        outputs += engine.step()
    found = {number: [] for number in range(1, 12)}
    for output in outputs:
        found[output.request_id] += ids(output.tokens)
    others = [alone(other, 20)] * 9
    assert list(found.values()) == [alone(short, 50), alone(long, 5), *others]


def test_the_cache_grows_with_the_text_and_starts_again():
    short, long = prompts(5, 200)
    engine = engine_of(rows=1, variables=VARIABLES)
    sizes = []
    engine.submit(GenerationRequest(short, 150))
    while not engine.is_idle:
        engine.step()
        sizes.append(engine._state.sizes[1])
    assert sorted(set(sizes)) == [64, 256] and sizes == sorted(sizes)
    engine.submit(GenerationRequest(long, 5))
    finish(engine)
    engine.submit(GenerationRequest(short, 40))
    ((found, _),) = finish(engine).values()
    assert ids(found) == alone(short, 40) and engine._state.sizes == (1, 64)


def test_prompts_are_prefilled_together():
    questions = prompts(*(5, 16, 1, 11, 4, 100, 120, 90, 300, 7))
    expected = [alone(question, 3) for question in questions]
    engine = engine_of(rows=16, variables=VARIABLES)
    numbers = [engine.submit(GenerationRequest(question, 3)) for question in questions]
    groups = []
    begin = engine._prefill
    engine._prefill = lambda group: groups.append([len(r.prompt) for r in group]) or begin(group)
    found = finish(engine)
    assert groups == [[5, 16, 1, 11, 4, 100], [120, 90], [300], [7]]
    assert [ids(found[number][0]) for number in numbers] == expected


def test_a_vocabulary_smaller_than_the_alternatives():
    model = tiny_model(vocab_size=16)
    engine = Engine(model, random_variables(model), [99], 1)
    engine.submit(GenerationRequest([3, 4], 6, wants_logprobs=True))
    ((found, _),) = finish(engine).values()
    assert [len(token.top_logprobs) for token in found] == [16] * 6


def test_an_end_token_is_not_told():
    (prompt,) = prompts(6)
    whole = alone(prompt, 12)
    for place in (0, 5):
        end = whole[place]
        engine = engine_of(ends=(NO_END, end), variables=VARIABLES)
        engine.submit(GenerationRequest(prompt, 12))
        ((found, reason),) = finish(engine).values()
        assert (ids(found), reason) == (whole[: whole.index(end)], 'stop')


def test_what_is_cancelled_makes_room():
    questions = prompts(5, 6, 7)
    engine = engine_of(rows=1, variables=VARIABLES)
    numbers = [engine.submit(GenerationRequest(question, 50)) for question in questions]
    assert [news.request_id for news in engine.step()] == [numbers[0]]
    engine.cancel(numbers[0])
    engine.cancel(numbers[1])
    found = finish(engine)
    assert found.keys() == {numbers[2]}
    assert ids(found[numbers[2]][0]) == alone(questions[2], 50)
    engine.cancel(numbers[2])
    assert engine.is_idle and engine.step() == []


def test_what_does_not_fit_is_refused():
    model = tiny_model(context=20)
    engine = Engine(model, random_variables(model), [NO_END], 1)
    engine.submit(GenerationRequest([5] * 12, 8))
    with pytest.raises(UserError) as caught:
        engine.submit(GenerationRequest([5] * 13, 8))
    assert str(caught.value) == (
        'A prompt of 13 tokens and an answer of up to 8 tokens exceed the context length of tiny, '
        '20 tokens.'
    )


def test_apart_layers_share_the_memory_of_the_stack():
    layers = decoding.unstack_layers(MODEL.config, VARIABLES)
    kernel = VARIABLES['params']['layers']['mlp']['up']['kernel']
    own = layers[1]['params']['mlp']['up']['kernel']
    np.testing.assert_array_equal(own, kernel[1])
    assert own.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer() + own.nbytes


def test_padding_of_the_prompt_is_no_past():
    """A request sees neither the slot's previous content nor the padding of its prompt."""
    (prompt,) = prompts(5)
    engine = engine_of(rows=1, variables=VARIABLES)
    engine.submit(GenerationRequest(prompts(60, seed=3)[0], 4))
    finish(engine)
    engine.submit(GenerationRequest(prompt, 30))
    ((found, _),) = finish(engine).values()
    tokens = list(prompt)
    for _ in range(30):
        logits = logits_of(MODEL, VARIABLES, jnp.asarray([tokens + [0] * (40 - len(tokens))]))
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    assert ids(found) == tokens[5:]


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_integers_of_64_bits_change_nothing(backend, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    how = dict(temperature=0.8, top_p=0.9, top_k=50, wants_logprobs=True)
    (prompt,) = prompts(5)
    expected = alone(prompt, 2 * STEPS_PER_CALL, key=jax.random.key(1), **how)
    with jax.enable_x64(True):
        assert alone(prompt, 2 * STEPS_PER_CALL, key=jax.random.key(1), **how) == expected


def test_a_request_that_cannot_be_begun_is_the_only_one(monkeypatch):
    questions = prompts(5, 6, 7)
    engine = engine_of(rows=3, variables=VARIABLES)
    begin = Engine._prefill

    def failing(engine, requests):
        if any(len(request.prompt) == 6 for request in requests):
            raise RuntimeError('no memory')
        return begin(engine, requests)

    monkeypatch.setattr(Engine, '_prefill', failing)
    numbers = [engine.submit(GenerationRequest(question, 9)) for question in questions]
    with pytest.raises(RequestError) as caught:
        engine.step()
    assert caught.value.request_id == numbers[1]
    assert str(caught.value.__cause__) == 'no memory'
    found = finish(engine)
    expected = {numbers[i]: alone(questions[i], 9) for i in (0, 2)}
    assert {number: ids(tokens) for number, (tokens, _) in found.items()} == expected


def test_an_engine_that_has_lost_its_state_is_reset(monkeypatch):
    (prompt,) = prompts(5)
    engine = engine_of(variables=VARIABLES)
    engine.submit(GenerationRequest(prompt, 9))
    engine.step()

    def failing(*arguments):
        jax.tree.map(lambda array: array.delete(), arguments[2])
        raise RuntimeError('the device failed')

    with monkeypatch.context() as patch:
        patch.setattr(prefill, 'prefill', failing)
        engine.submit(GenerationRequest(prompt, 9))
        with pytest.raises(RuntimeError, match='the device failed'):
            engine.step()
    engine.reset()
    assert engine.is_idle
    engine.submit(GenerationRequest(prompt, 9))
    ((found, _),) = finish(engine).values()
    assert ids(found) == alone(prompt, 9)

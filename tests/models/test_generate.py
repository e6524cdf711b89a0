import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.models import Decoder, sampling
from malora_jax.models.engine import STEPS_PER_CALL, Engine
from malora_jax.models.generate import Generator
from malora_jax.models.sampling import SamplingParams
from tests.helpers.models import logits_of, prompts, random_variables, small_method, tiny_model

NO_END = 300  # Not in the vocabulary: generation runs to its limit.
PLACES = 40
LONG = 2 * STEPS_PER_CALL + 5
MODELS = {
    name: tiny_model(small_method(name) if name != 'base' else None)
    for name in ('base', 'lora', 'malora')
}
VARIABLES = {name: random_variables(model, seed=1) for name, model in MODELS.items()}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


def most_probable(logits: np.ndarray, place: int) -> int:
    return logits.argmax()


def uncached(
    model: Decoder, variables, prompt: list[int], count: int, pick=most_probable
) -> list[int]:
    """Return the continuation without a KV cache: each token runs the whole sequence again."""
    tokens = list(prompt)
    for _ in range(count):
        row = np.zeros((1, PLACES), np.int32)
        row[0, : len(tokens)] = tokens
        segments = (jnp.arange(PLACES) < len(tokens)).astype(jnp.int32)[None]
        logits = logits_of(model, variables, row, segments=segments)
        tokens.append(int(pick(logits[0, len(tokens) - 1], len(tokens) - len(prompt))))
    return tokens[len(prompt) :]


def generate(name: str, questions, *, end=NO_END, batch=4, new=12, limit=None):
    generator = Generator(MODELS[name], end, batch_size=batch, max_new_tokens=new)
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
    # Uneven, unsorted prompts in two batches; the second one has slots without a prompt.
    questions = prompts(9, 2, 15, 1, 7, 3)
    batched = generate(name, questions)
    assert [len(answer) for answer in batched] == [12] * 6
    assert batched == [generate(name, [prompt], batch=1)[0] for prompt in questions]


def test_limit():
    questions = prompts(4, 8)
    whole = generate('malora', questions)
    for limit in (1, 5, 12):
        assert generate('malora', questions, limit=limit) == [a[:limit] for a in whole]
    assert generate('malora', questions, limit=99) == whole


def test_an_answer_stops_before_the_end_token():
    questions = prompts(4, 8, 6, seed=5)
    whole = generate('malora', questions)
    # A token that ends one answer in its middle, and the others elsewhere or never.
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
    generator = Generator(model, NO_END, batch_size=2, max_new_tokens=8)
    assert len(generator(VARIABLES['base'], prompts(12, 3))[0]) == 8
    assert len(generator(VARIABLES['base'], prompts(14), max_new_tokens=6)[0]) == 6
    with pytest.raises(UserError) as caught:
        generator(VARIABLES['base'], prompts(3, 13))
    assert str(caught.value) == (
        'A prompt of 13 tokens and an answer of up to 8 tokens exceed the context length of tiny, '
        '20 tokens.'
    )


class Letters:
    """Tokenizer with two letters per token, except for the special token 7, which gives no text."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        assert continues
        return ''.join(chr(97 + i // 26) + chr(97 + i % 26) for i in ids if i != 7)

    def token_to_id(self, token: str) -> int | None:
        return 7 if token == '<7>' else None


LETTERS = Letters()


def texts(questions, *, end=NO_END, batch=4, new=12, tokenizer=LETTERS, **how) -> list[list[str]]:
    generator = Generator(MODELS['malora'], end, batch_size=batch, max_new_tokens=new)
    return generator.generate_texts(VARIABLES['malora'], questions, tokenizer, **how)


def test_texts_are_those_of_the_most_probable_tokens():
    questions = prompts(4, 8, 6, 2, 9)
    tokens = generate('malora', questions, limit=9)
    assert texts(questions, max_new_tokens=9) == [
        [LETTERS.decode(t, continues=True)] for t in tokens
    ]


def test_looking_at_the_texts_changes_nothing():
    questions = prompts(4, 8, 6, 2, 9)
    whole = texts(questions, new=LONG)
    assert [len(text) for (text,) in whole] == [2 * LONG] * 5
    assert texts(questions, new=LONG, stop=('never',)) == whole
    end = generate('malora', questions[:1], new=LONG)[0][STEPS_PER_CALL + 3]
    ended = texts(questions, new=LONG, end=end)
    assert ended != whole
    assert texts(questions, new=LONG, end=end, stop=('never',)) == ended


@pytest.mark.parametrize(
    'start, batch', [(1, 4), (8, 1), (2 * STEPS_PER_CALL - 1, 4), (2 * STEPS_PER_CALL + 4, 4)]
)
def test_a_text_ends_before_a_stop_string(start, batch):
    """The stop string starts and ends within tokens, also across two checks for stop strings."""
    questions = prompts(4, 8, 6, 2, 9)
    whole = [text for (text,) in texts(questions, new=LONG)]
    stop = whole[1][start : start + 5]
    expected = [[text.split(stop)[0]] for text in whole]
    assert len(expected[1][0]) <= start
    assert texts(questions, new=LONG, batch=batch, stop=(stop, 'never')) == expected


def test_the_first_stop_string_counts():
    (question,) = prompts(8)
    ((whole,),) = texts([question])
    assert texts([question], stop=(whole[15:18], whole[9:12])) == [[whole[:9]]]


def test_a_stop_string_may_be_a_special_token():
    questions = prompts(4, 8, 6, 2, 9)
    tokens = generate('malora', questions, new=LONG)
    # It replaces a token that the model generates; all other ids are unchanged.
    special = tokens[2][STEPS_PER_CALL + 2]

    class Special(Letters):
        def decode(self, ids, *, continues=False):
            return super().decode([i for i in ids if i != special], continues=continues)

        def token_to_id(self, token):
            return special if token == '<end>' else None

    found = texts(questions, new=LONG, tokenizer=Special(), stop=('<end>',))
    cut = [t[: t.index(special)] if special in t else t for t in tokens]
    assert len(cut[2]) <= STEPS_PER_CALL + 2
    assert found == [[LETTERS.decode(t, continues=True)] for t in cut]


def test_an_answer_is_over_when_its_text_is(monkeypatch):
    """Its slot is reused by the next request; generation ends when all answers are complete."""
    steps = []
    step = Engine.step

    def spied(engine):
        news = step(engine)
        steps.append([each.request_id for each in news])
        return news

    monkeypatch.setattr(Engine, 'step', spied)
    questions = prompts(8, 6, 4)
    (first,), (second,), (third,) = texts(questions, new=LONG)
    whole = len(steps)
    steps.clear()
    stop = (first[6:9], second[2 * STEPS_PER_CALL : 2 * STEPS_PER_CALL + 5], third[6:9])
    texts(questions, new=LONG, batch=2, stop=stop)
    assert len(steps) < whole
    assert steps[0] == [1, 2] and 3 in steps[1]


def test_progress_is_told_after_each_step_and_with_each_answer(monkeypatch, capsys):
    counts = []
    step = Engine.step

    def spied(engine):
        counts.append('step')
        return step(engine)

    monkeypatch.setattr(Engine, 'step', spied)
    texts(prompts(4, 8), samples=3, temperature=1.0, advance=counts.append)
    assert counts.count(1) == 6 and counts.count(0) == counts.count('step') > 0
    assert all(after == 0 for before, after in itertools.pairwise(counts) if before == 'step')
    assert capsys.readouterr() == ('', '')


SAMPLED = dict(temperature=0.8, top_p=0.9, samples=3, seed=5)


def test_what_is_drawn_depends_on_no_batch():
    questions = prompts(9, 2, 15, 1, 7)
    expected = texts(questions, **SAMPLED)
    assert len({text for three in expected for text in three}) == 15
    for batch in (1, 7):
        assert texts(questions, batch=batch, **SAMPLED) == expected
    assert texts(questions[:2], **SAMPLED) == expected[:2]


def test_what_is_drawn_depends_on_no_other_sample():
    questions = prompts(9, 2)
    three, two = texts(questions, **SAMPLED), texts(questions, **SAMPLED | {'samples': 2})
    assert [drawn[:2] for drawn in three] == two


def test_what_is_drawn_depends_on_the_seed_and_on_the_place():
    (question,) = prompts(9)
    found = texts([question] * 2, **SAMPLED) + texts([question], **SAMPLED | {'seed': 6})
    assert len({text for three in found for text in three}) == 9


def test_sampled_with_a_cache_equals_sampled_without():
    sample, expected = jax.jit(sampling.sample), []
    questions = prompts(5, 16, 1)
    for i, prompt in enumerate(questions):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0)
        draws = SamplingParams(key[None], *(jnp.array([x]) for x in (0.8, 0, 0.9)))

        def pick(logits, place, draws=draws):
            return sample(logits[None], draws, jnp.array([place]))[0]

        tokens = uncached(MODELS['malora'], VARIABLES['malora'], prompt, 12, pick)
        expected.append([LETTERS.decode(tokens, continues=True)])
    assert texts(questions, **SAMPLED | {'samples': 1}) == expected


def test_without_heat_it_is_the_most_probable():
    questions = prompts(4, 8, 6)
    greedy = texts(questions)
    for temperature in (1e-3, 1e-30):
        assert texts(questions, temperature=temperature) == greedy
    assert texts(questions, temperature=1.0, top_p=1e-6) == greedy
    assert texts(questions, temperature=1.0, top_k=1) == greedy
    assert texts(questions, temperature=1.0) != greedy


@pytest.mark.parametrize('temperature, top_p', [(1.0, 1.0), (0.5, 1.0), (1.3, 0.8)])
def test_frequencies_are_those_of_the_softmax(temperature, top_p):
    """A chi-square test, which 1 in 10,000 seeds would fail."""
    count, (prompt,) = 4000, prompts(6)
    logits = logits_of(MODELS['malora'], VARIABLES['malora'], [prompt])[0, -1].astype(float)
    chances = np.exp(logits / temperature)
    chances = nucleus(chances / chances.sum(), top_p)
    expected = count * chances / chances.sum()
    how = dict(samples=count, temperature=temperature, top_p=top_p)
    (drawn,) = texts([prompt], batch=1000, new=1, **how)
    # The special token gives no text.
    tokens = [26 * ord(text[0]) + ord(text[1]) - 27 * 97 if text else 7 for text in drawn]
    found = np.bincount(tokens, minlength=300)
    assert not found[expected == 0].any()
    rare = expected < 5
    found = [found[rare].sum(), *found[~rare]]
    expected = [expected[rare].sum(), *expected[~rare]]
    first = int(expected[0] == 0)
    assert len(expected) > 20
    assert scipy.stats.chisquare(found[first:], expected[first:]).pvalue > 1e-4


def nucleus(chances: np.ndarray, top_p: float) -> np.ndarray:
    """Return the probabilities of the nucleus, by its definition; zero outside."""
    order = np.argsort(-chances, kind='stable')
    count = 1 + int((np.cumsum(chances[order]) < top_p).sum())
    return np.where(chances >= chances[order[min(count, len(order)) - 1]], chances, 0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-30, 30), min_size=12, max_size=12), st.floats(0.01, 0.99))
def test_the_nucleus(eighths, top_p):
    """Probabilities may be equal, because logits are multiples of 1/8."""
    logits = np.array(eighths) / 8
    chances = np.exp(logits) / np.exp(logits).sum()
    found = jax.jit(sampling._mask_top_p)(jnp.float32(logits)[None], jnp.float32([top_p]))[0]
    sums = np.cumsum(-np.sort(-chances))
    if np.abs(sums - top_p).min() > 1e-5:  # Otherwise rounding decides.
        np.testing.assert_array_equal(np.isfinite(found), nucleus(chances, top_p) > 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-30, 30), min_size=12, max_size=12), st.integers(0, 14))
def test_the_most_probable_ones(eighths, top_k):
    """Top-k keeps the k most probable tokens and ties with the last of them; all if k is 0."""
    logits = np.array(eighths) / 8
    found = jax.jit(sampling._mask_top_k)(jnp.float32(logits)[None], jnp.array([top_k]))[0]
    least = np.sort(logits)[::-1][min(top_k, 12) - 1] if top_k else -np.inf
    np.testing.assert_array_equal(np.isfinite(found), logits >= least)


@pytest.mark.parametrize(
    'setting, message',
    [
        ({'stop': ('x', '')}, "stop is ('x', ''); it must be a list of non-empty strings."),
        ({'samples': 0}, 'samples is 0; it must be at least 1.'),
        ({'temperature': -0.1}, 'temperature is -0.1; it must be at least 0.'),
        ({'top_k': -1}, 'top_k is -1; it must be at least 0.'),
        ({'top_p': 0.0}, 'top_p is 0.0; it must be above 0 and at most 1.'),
        ({'samples': 2}, 'temperature is 0.0; it must be positive for 2 samples.'),
    ],
)
def test_what_cannot_be_sampled(setting, message):
    with pytest.raises(UserError) as caught:
        texts(prompts(3), **setting)
    assert str(caught.value) == message


def test_no_prompts_no_texts():
    assert texts([], **SAMPLED) == []

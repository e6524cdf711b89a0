"""Tokens against a reference: see fixtures/make_smollm2.py and fixtures/reference_bpe.py."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.data import encode_example, encode_prompt, end_token_id, get_task, get_template
from malora_jax.models import preset
from malora_jax.models.loading.base_model import find_weights
from malora_jax.models.loading.gguf_file import GGUFFile
from malora_jax.models.loading.tokenizer import Tokenizer, from_gguf
from tests.helpers.paths import FIXTURES
from tests.helpers.tiny_gguf import SPECIAL_TOKENS, write_tiny_gguf

RECORDED = json.loads((FIXTURES / 'smollm2_tokens.json').read_text('utf-8'))


@pytest.fixture(scope='module')
def smollm2() -> Tokenizer:
    return from_gguf(GGUFFile(find_weights(preset('smollm2-135m'), '')))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp('tiny') / 'tiny.gguf'
    write_tiny_gguf(path)
    return from_gguf(GGUFFile(path))


@pytest.mark.parametrize('item', RECORDED['texts'], ids=lambda item: ascii(item['text'][:20]))
def test_ids_and_text(smollm2, item):
    assert smollm2.encode(item['text']) == item['ids']
    assert smollm2.decode(item['ids']) == item['decoded_without_special']


def test_special_tokens(smollm2):
    assert smollm2.vocab_size == 49152
    assert smollm2.token_to_id('<|im_start|>') == 1
    assert smollm2.token_to_id('<|im_end|>') == smollm2.eos_id == 2
    assert smollm2.token_to_id('<|no_such_token|>') is None


# SmolLM2 has no token for some control characters and for the bytes F1 and F2, with which code
# points from U+40000 on start.
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=['Cs', 'Cc'], max_codepoint=0x3FFFF)))
def test_every_text_comes_back(smollm2, tiny, text):
    for tokenizer in (smollm2, tiny):
        if not any(special in text for special in SPECIAL_TOKENS):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 10**12))
def test_digits_stand_alone(smollm2, number):
    ids = smollm2.encode(str(number))
    assert [smollm2.decode([i]) for i in ids] == list(str(number))


TASKS = ('word_sequence_reversal', 'number_filtering', 'decimal_chain_sum', 'needle_haystack')


@pytest.mark.parametrize('task', TASKS)
def test_chatml_as_the_quickstart_trains_it(smollm2, task):
    """Prompt, answer and end token have the ids that they have when each is encoded alone."""
    template = get_template('chatml')
    assert end_token_id(smollm2, template) == 2
    for example in get_task(task).source.examples(0, 25):
        question = f'<|im_start|>user\n{example.question}<|im_end|>\n<|im_start|>assistant\n'
        prompt, answer = smollm2.encode(question), smollm2.encode(example.answer)
        assert encode_prompt(smollm2, template, example.question) == prompt
        encoded = encode_example(smollm2, template, example, 0, 256)
        assert encoded['inputs'].tolist() == [*prompt, *answer]
        assert encoded['targets'].tolist() == [*prompt[1:], *answer, 2]


def test_the_chat_template_that_came_with_smollm2(smollm2):
    template = get_template('chat')
    system = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
    assert template.prompt(smollm2, 'Why?') == (
        f'<|im_start|>system\n{system}<|im_end|>\n'
        '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
    )
    assert template.completion(smollm2, 'Why?', 'So.') == 'So.'
    assert end_token_id(smollm2, template) == 2
    assert encode_prompt(smollm2, template, 'Why?')[:2] == [1, 9690]


def test_tiny_by_hand(tiny):
    ids = tiny.encode('<|im_start|>user\nworld 12<|im_end|>')
    pieces = [i if i < 3 else tiny.decode([i]) for i in ids]
    assert pieces == [1, 'user', '\n', 'world', ' ', '1', '2', 2]

"""Chat templates, compared with recordings of transformers; see make_tokenizers.py."""

import dataclasses
import functools
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.data import (
    Example,
    encode_completion,
    encode_example,
    encode_prompt,
    end_token_id,
    get_template,
)
from malora_jax.data.chat import ChatRenderer
from malora_jax.data.templates import FixedTemplate
from malora_jax.errors import UserError
from malora_jax.models.loading.tokenizer import Tokenizer
from tests.helpers.recorded_tokenizers import NAMES, from_directory, from_metadata, read_recording

CHAT = get_template('chat')
CASES = [(name, chat['name']) for name in NAMES for chat in read_recording(name)['chats']]
ENDS = {'llama3': '<|eot_id|>', 'qwen2': '<|im_end|>', 'llama2': '</s>', 'mistral': '</s>'}


def chat_of(name: str, template: str) -> dict:
    return next(chat for chat in read_recording(name)['chats'] if chat['name'] == template)


@pytest.fixture(params=CASES, ids='-'.join)
def case(request, tmp_path):
    """Tokenizer with a chat template, the end token of its answers, and recorded turns."""
    name, template = request.param
    chat = chat_of(name, template)
    tokenizer = from_directory(tmp_path, name, chat_template=chat['template'])
    return tokenizer, ENDS[name], chat['turns']


def test_texts_as_transformers_renders_them(case):
    tokenizer, end, turns = case
    assert CHAT.get_end_token(tokenizer) == end
    for turn in turns:
        prompt = CHAT.prompt(tokenizer, turn['question'])
        assert prompt == turn['prompt']
        completion = CHAT.completion(tokenizer, turn['question'], turn['answer'])
        before, found, after = turn['whole'].rpartition(end)
        assert prompt + completion == before
        assert found and not after.strip()
        assert completion.strip() == turn['answer']


def test_ids_as_transformers_encodes_them(case):
    tokenizer, end, turns = case
    for turn in turns:
        assert encode_prompt(tokenizer, CHAT, turn['question']) == turn['prompt_ids']
        example = Example(turn['question'], turn['answer'], {})
        encoded = encode_example(tokenizer, CHAT, example, 0, 512)
        ids = [*encoded['inputs'][:1].tolist(), *encoded['targets'].tolist()]
        assert ids[-1] == end_token_id(tokenizer, CHAT) == tokenizer.token_to_id(end)
        assert turn['whole_ids'][: len(ids)] == ids
        assert tokenizer.decode(turn['whole_ids'][len(ids) :]).strip() == ''


def test_the_loss_is_on_the_answer_and_its_end(case):
    tokenizer, end, turns = case
    for turn in turns:
        example = Example(turn['question'], turn['answer'], {})
        encoded = encode_example(tokenizer, CHAT, example, 0, 512)
        trained = encoded['targets'][encoded['loss_mask'] == 1].tolist()
        assert trained[-1] == tokenizer.token_to_id(end)
        assert tokenizer.decode(trained, continues=True).strip() == turn['answer']
        first = int(np.argmax(encoded['loss_mask']))
        assert encoded['inputs'][: first + 1].tolist() == turn['prompt_ids']


def test_gguf_gives_the_same_texts(tmp_path):
    """A GGUF tokenizer has its own way to encode text after a special token."""
    chat = chat_of('llama2', 'llama2')
    tokenizer = from_metadata(tmp_path / 'a.gguf', 'llama2', chat_template=chat['template'])
    for turn in chat['turns']:
        assert CHAT.prompt(tokenizer, turn['question']) == turn['prompt']
        prompt = encode_prompt(tokenizer, CHAT, turn['question'])
        encoded = encode_example(
            tokenizer, CHAT, Example(turn['question'], turn['answer'], {}), 0, 512
        )
        whole = tokenizer.encode(turn['whole'])
        assert [*encoded['inputs'].tolist(), int(encoded['targets'][-1])] == whole
        assert whole[: len(prompt)] == prompt
        # Meta's code prepends the BOS token to SentencePiece's encoding of the rest.
        assert whole == [1, *tokenizer.encode(turn['whole'].removeprefix('<s>'))]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['directory', 'gguf'])
def test_prompts_start_with_bos_once_and_completions_never(tmp_path, name, kind):
    template = read_recording(name)['chats'][0]['template']
    without = template.replace('bos_token', "''")
    for source, use in ((template, CHAT), (without, CHAT), (None, get_template('plain'))):
        if kind == 'gguf':
            changes = {} if source is None else {'chat_template': source}
            tokenizer = from_metadata(tmp_path / 'a.gguf', name, **changes)
        else:
            tokenizer = from_directory(tmp_path, name, chat_template=source)
        prompt = encode_prompt(tokenizer, use, 'Why?')
        encoded = encode_example(tokenizer, use, Example('Why?', 'So.', {}), 0, 512)
        assert encoded['inputs'][: len(prompt)].tolist() == prompt
        if name == 'qwen2':
            assert tokenizer.bos_id is None
        else:
            assert [i for i, t in enumerate(encoded['inputs']) if t == tokenizer.bos_id] == [0]
            assert tokenizer.bos_id not in encoded['targets']


@pytest.mark.parametrize('name', ['llama2', 'mistral'])
@pytest.mark.parametrize('kind', ['directory', 'gguf'])
def test_an_answer_goes_on_where_the_prompt_ends(tmp_path, name, kind):
    """SentencePiece encodes ' yes' alone differently from ' yes' after 'Answer:'."""
    if kind == 'gguf':
        tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    else:
        tokenizer = from_directory(tmp_path, name)
    plain = get_template('plain')
    encoded = encode_example(tokenizer, plain, Example('Is it?', 'yes', {}), 0, 512)
    whole = tokenizer.encode('Question: Is it?\nAnswer: yes')
    assert encoded['inputs'].tolist() == [1, *whole]
    trained = encoded['targets'][encoded['loss_mask'] == 1].tolist()
    if kind == 'gguf':
        assert trained[:-1] != tokenizer.encode(' yes')
    assert trained == [*tokenizer.encode('yes'), tokenizer.eos_id]


def test_an_answer_after_a_control_token_has_one_space_before_it(tmp_path):
    """Mistral was trained like this, though llama.cpp adds a space if it encodes both at once."""
    source = chat_of('mistral', 'mistral-0.3')['template']
    tokenizer = from_metadata(tmp_path / 'a.gguf', 'mistral', chat_template=source)
    encoded = encode_example(tokenizer, CHAT, Example('Is it?', 'yes', {}), 0, 512)
    trained = encoded['targets'][encoded['loss_mask'] == 1].tolist()
    assert trained == [*tokenizer.encode('yes'), tokenizer.eos_id]


@pytest.mark.parametrize('name', ['llama2', 'llama3'])
def test_a_prompt_that_would_grow_into_the_answer_stays_as_it_is(tmp_path, name):
    """Generation sees the prompt's tokens alone, so training must use the same tokens."""
    tokenizer = from_metadata(tmp_path / 'a.gguf', name)
    ends_in_space = dataclasses.replace(
        get_template('plain'), between='\nAnswer: ', answer_prefix=''
    )
    example = Example('Is it?', 'yes', {})
    prompt = encode_prompt(tokenizer, ends_in_space, example.question)
    encoded = encode_example(tokenizer, ends_in_space, example, 0, 512)
    assert encoded['inputs'][: len(prompt)].tolist() == prompt
    trained = encoded['targets'][encoded['loss_mask'] == 1].tolist()
    assert trained == [*tokenizer.encode('yes', continues=True), tokenizer.eos_id]
    both = tokenizer.encode('Question: Is it?\nAnswer: yes')
    assert both[: len(prompt) - 1] != prompt[1:]
    assert tokenizer.decode([*prompt[1:], *trained]) == 'Question: Is it?\nAnswer: yes'


@functools.cache
def from_recorded(name: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return from_metadata(pathlib.Path(folder) / 'a.gguf', name)


# Texts without special tokens and without the mark that SentencePiece uses for a space.
TEXTS = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='<[▁'), max_size=20)


# Without Qwen's tokenizer: its normalization composes characters, even across the two texts.
@pytest.mark.parametrize('name', ['llama3', 'llama2', 'mistral'])
@settings(deadline=None, max_examples=100)
@given(question=TEXTS, between=TEXTS, answer=TEXTS)
def test_prompt_and_answer_are_the_whole_text(name, question, between, answer):
    tokenizer = from_recorded(name)
    template = FixedTemplate('any', '?', between, '', None)
    prompt = tokenizer.encode(template.prompt(tokenizer, question))
    completion = encode_completion(tokenizer, template, Example(question, answer, {}))
    assert tokenizer.decode([*prompt, *completion]) == '?' + question + between + answer
    assert tokenizer.decode(completion, continues=True) == answer


SPECIAL = frozenset({'<end>', '<end', '<s>'})


def make(source: str, **named: str) -> ChatRenderer:
    return ChatRenderer(source, named, SPECIAL)


GOOD = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>\n{% endfor %}"
    '{% if add_generation_prompt %}assistant: {% endif %}'
)


def test_the_longest_token_ends_an_answer():
    chat = make(GOOD)
    assert chat.end_token == '<end>'
    assert chat.prompt('Q<end>') == 'user: Q<end><end>\nassistant: '
    assert chat.completion('Q', 'A<end>, B') == 'A<end>, B'


def test_what_templates_find():
    head = (
        "{{ strftime_now('%Y-%m-%d') }} {{ date_string }} {{ {'a': ['<é>']} | tojson }} "
        '{{ tools is none and documents is none }} {{ bos_token }}{{ pad_token }} '
        '{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}\n'
        '  {% generation %}\n  {{ enable_thinking }}{% endgeneration %}\n'
    )
    prompt = make(head + GOOD, bos_token='<s>').prompt('Q')
    assert prompt == (
        '2024-07-26 26 Jul 2024 {"a": ["<é>"]} True <s> 1  Falseuser: Q<end>\nassistant: '
    )


INSTEAD = "set data.template to 'plain' or 'chatml'."
OTHERWISE = "The model's chat template renders the prompt differently when an answer follows: "
ELSEWHERE = (
    "The model's chat template must render the answer directly after the prompt and end it with a "
    'special token: '
)


@pytest.mark.parametrize(
    'source, expected',
    [
        ('{% if %}', "The model's chat template is broken ("),
        ("{{ raise_exception('No system.') }}", "The model's chat template fails (No system.): "),
        ('{{ 1 + messages }}', "The model's chat template fails (unsupported operand type"),
        ("{{ ''.__class__.__mro__ }}", "The model's chat template fails (access to attribute "),
        ('{{ messages.append(1) }}', "The model's chat template fails (access to attribute "),
        ('{{ messages | length }}<end>', OTHERWISE),
        (GOOD.replace('<end>', '.'), ELSEWHERE),
        (GOOD.replace('assistant: ', ''), ELSEWHERE),
        (GOOD.replace("m['content']", "m['text']"), ELSEWHERE),
    ],
)
def test_templates_that_cannot_be_used(source, expected):
    with pytest.raises(UserError) as caught:
        make(source)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith(INSTEAD)
    assert '\n' not in str(caught.value)


def test_an_answer_that_ends_in_another_way():
    chat = make(GOOD.replace('<end>', "{{ '' if m['content'] == 'odd' else '<end>' }}"))
    with pytest.raises(UserError) as caught:
        chat.completion('Q', 'odd')
    assert str(caught.value) == (
        f"The model's chat template does not end the answer 'odd' with '<end>\\n': {INSTEAD}"
    )


def test_a_model_without_a_chat_template(tokenizer):
    with pytest.raises(UserError) as caught:
        end_token_id(tokenizer, CHAT)
    assert str(caught.value) == (
        "data.template is 'chat', but the model comes without a chat template: set it to 'plain' "
        "or 'chatml'."
    )

"""The project's own decoder as the queried model, with small random weights."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.llm import local
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest, Reply
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.language_model import language_model
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.ultralink.helpers import WordCounter, read_rows, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

GREEDY = ChatSampling(max_tokens=12, temperature=0.0)


def request(text, sampling=GREEDY, sample=0, system=''):
    messages = [ChatMessage('system', system)] if system else []
    return ModelRequest('some', (*messages, ChatMessage('user', text)), sampling, sample)


def complete(model, *requests, rows=2):
    async def main():
        asked = local.LocalModel(model, rows)
        try:
            return asked.name, await asyncio.gather(*map(asked.complete, requests))
        finally:
            await asked.close()

    return asyncio.run(main())


def test_it_says_what_the_model_says():
    model = language_model()
    questions = ['Why?', 'How many are there?', 'Who', 'When was that, and where?']
    _, replies = complete(model, *map(request, questions))
    for question, reply in zip(questions, replies, strict=True):
        expected = model.chat(question, max_new_tokens=12)
        assert reply.text == expected
        assert reply.finish_reason == 'length'
        assert reply.tokens == len(model.encode_prompt(question)) + 12


def test_what_is_drawn_depends_on_the_request_alone():
    model = language_model()
    warm = ChatSampling(max_tokens=12, temperature=1.0)
    asked = [request('Why?', warm, sample) for sample in range(3)]
    _, together = complete(model, *asked, rows=3)
    _, apart = complete(model, *reversed(asked), rows=1)
    assert together == apart[::-1]
    assert len({reply.text for reply in together}) == 3


def test_a_template_without_a_system_message_has_the_user_say_it():
    model = language_model('plain')
    _, [reply] = complete(model, request('Why?', system='Be brief.'))
    assert reply.text == model.chat('Be brief.\n\nWhy?', max_new_tokens=12)


def test_what_does_not_fit_into_the_context():
    model = language_model()
    context = model.model.config.context
    length = len(model.encode_prompt(''))
    fits = request('x' * (context - length - 5))
    full = request('x' * (context - length))
    _, replies = complete(model, fits, full)
    assert replies[0].tokens == context
    assert replies[1] == Reply('', 'refused', 0)


def test_the_name_tells_the_weights():
    model = language_model()
    assert complete(model)[0] != complete(model.base())[0]
    assert complete(model)[0] == complete(language_model())[0]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('local')
    write_tiny_gguf(folder / 'tiny.gguf')
    path = folder / 'small.py'
    path.write_text(
        'from configs import quickstart\n\n\n'
        "def get_config(arg='malora'):\n"
        '    config = quickstart.get_config(arg)\n'
        "    config.model.name = 'tiny'\n"
        f"    config.model.weights = '{folder}/tiny.gguf'\n"
        '    return config\n'
    )
    return path


def test_the_base_that_a_config_names_in_its_own_template(config):
    model = local.load_model(f'{config}:lora')
    assert (model.name, model.template.name) == ('tiny', 'chat')
    with pytest.raises(UserError, match="Unknown method 'nothing'"):
        local.load_model(f'{config}:nothing')


@pytest.mark.parametrize('place', ['none', 'none.py', 'setup.cfg'])
def test_a_place_where_nothing_is(place):
    with pytest.raises(
        UserError, match=f'--llm=local:{place}: this is neither a run directory nor'
    ):
        local.load_model(place)


@pytest.mark.parametrize('text, message', [('def (:', 'not valid'), ('x = 1', 'no function')])
def test_a_file_that_is_no_config(tmp_path, text, message):
    path = tmp_path / 'mine.py'
    path.write_text(text)
    with pytest.raises(UserError, match=rf'--llm=local:{path}: the file .*{message}'):
        local.load_model(str(path))


@pytest.mark.parametrize('flag, value', [('base_url', 'http://127.0.0.1:1'), ('token_limit', 5)])
def test_what_is_for_endpoints_is_refused(flag, value):
    with pytest.raises(UserError, match=f'--{flag} applies only to endpoints; --llm=local:runs/a'):
        ModelChoice('local:runs/a', Path('c.sqlite'), **{flag: value})


def test_a_model_that_knows_no_language_has_everything_dropped_and_counted(tmp_path, config):
    """No check is relaxed for it: the counts give the reasons."""
    rows = [
        {'id': str(i), 'language': 'en', 'title': 't', 'text': f'The canal was dug in {1800 + i}.'}
        for i in range(3)
    ]
    source = write_rows(tmp_path / 'in.jsonl', rows)
    settings = DialoguesConfig(attempts=2, question_tokens=8)
    given = StageRun(
        settings, [source], tmp_path / 'out', token_counter=WordCounter(), concurrency=3
    )

    async def main():
        async with open_model(ModelChoice(f'local:{config}', tmp_path / 'c.sqlite', 3)) as model:
            return await STAGES['dialogues'].run(dataclasses.replace(given, model=model))

    found = asyncio.run(main())
    assert found.complete and read_rows(tmp_path / 'out') == []
    assert found.total.items == 3 == sum(found.total.dropped.values())
    faults = sum(
        n for name, n in found.total.counts.items() if name.startswith('fault in question')
    )
    assert faults == 2 * 3

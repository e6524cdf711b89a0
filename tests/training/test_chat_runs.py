"""A run on conversations in two languages, as configs/ultralink_lm_small.py sets it up."""

import importlib
import json

import numpy as np
import pytest

from malora_jax import training
from malora_jax.data.templates import get_template
from malora_jax.files import read_json_lines
from malora_jax.inference import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

# Short questions and answers, which a tiny model memorizes.
CHATS = {
    'en': [['colour %d?', 'red'], ['and of %d?', 'red too']],
    'fr': [['couleur %d ?', 'bleu'], ['et de %d ?', 'bleu aussi']],
}


@pytest.fixture(scope='module')
def workdir(tiny_weights, tmp_path_factory):
    home = tmp_path_factory.mktemp('chats')
    for language, turns in CHATS.items():
        texts = [text for turn in turns for text in turn]
        rows = [
            {'id': f'{language}_{n}', 'data': [text.replace('%d', str(n)) for text in texts]}
            for n in range(40)
        ]
        (home / f'{language}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    config = importlib.import_module('configs.ultralink_lm_small').get_config('malora')
    config.update_from_flattened_dict(
        {
            'model.name': 'tiny',
            'model.weights': str(tiny_weights),
            'adapter.dropout': 0.0,
            'data.files': tuple(f'{language}={home}/{language}.jsonl' for language in CHATS),
            'data.held_out': 4,
            'data.validation': 4,
            'data.sequence_length': 128,
            'data.batch_size': 2,
            'optimizer.learning_rate': 1e-2,
            'training.steps': 60,
            'training.checkpoint_every': 30,
            'training.evaluate_every': 30,
            'evaluation.max_new_tokens': 16,
        }
    )
    training.train(config.to_dict(), home / 'run')
    return home / 'run'


def test_the_loss_of_each_language_falls(workdir):
    records = read_json_lines(workdir / 'metrics.jsonl')
    for language in CHATS:
        losses = [r[f'loss/{language}'] for r in records if f'loss/{language}' in r]
        assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    results = json.loads((workdir / 'results.json').read_text())
    for language in CHATS:
        task = results['tasks'][language]
        assert task['loss_after'] < 0.5 * task['loss_before']


def test_answers_of_all_turns_carry_loss_and_nothing_else(workdir):
    """The training data counts one token per byte of an answer, and one end token per answer."""
    results = json.loads((workdir / 'results.json').read_text())
    for language, turns in CHATS.items():
        found = results['training_data'][language]
        answers = sum(len(answer) + 1 for _, answer in turns)
        assert found['answer_tokens'] <= found['examples'] * answers
        assert found['answer_tokens'] > found['examples'] * 2 * len(turns)
        assert found['cut_first_turns'] == found['dropped_answers'] == 0


def test_the_last_question_is_asked_after_the_turns_before(workdir):
    """The held-out loss is that of the last answer in the conversation as it is served."""
    model = load(workdir)
    answers = read_json_lines(workdir / 'answers_after.jsonl')
    (first,) = [answer for answer in answers if answer['question'].startswith('and of')][:1]
    number = first['question'].split()[-1].rstrip('?')
    messages = [
        {'role': 'user', 'content': f'colour {number}?'},
        {'role': 'assistant', 'content': 'red'},
        {'role': 'user', 'content': first['question']},
    ]
    template = get_template('chatml')
    assert model.encode_prompt(messages) == model.encode_text(
        template.conversation(model.tokenizer, messages)
    )
    said = model.chat(messages, max_new_tokens=16)
    assert said.strip() == first['answer'].strip()

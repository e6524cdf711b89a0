"""Overlaps of training and test sets."""

import json

import pytest

from malora_jax.data import Overlap, Store, count_overlaps, get_dataset
from malora_jax.errors import UserError


def arc(question: str, *options: str) -> dict:
    labels = list('ABCDE'[: len(options)])
    return {
        'question': question,
        'choices': {'text': options, 'label': labels},
        'answerKey': 'A',
    }


def gsm8k(question: str) -> dict:
    return {'question': question, 'answer': '#### 1'}


FILES = {
    'arc_easy/train': [arc('Is ice cold?', 'yes', 'no'), arc('What rusts?', 'iron', 'milk')],
    'arc_easy/test': [
        arc(' is  ICE cold?', 'No', 'yes'),
        arc('What rusts?', 'iron', 'wool'),
        arc('What rusts?', 'iron', 'sand'),
        arc('What melts?', 'ice', 'sand'),
    ],
    'arc_challenge/train': [arc('What melts?', 'ice', 'iron'), arc('What floats?', 'wood', 'sand')],
    'arc_challenge/test': [arc('Why?', 'so', 'no')],
    'gsm8k/train': [gsm8k('How many?'), gsm8k('How far?')],
    'gsm8k/test': [gsm8k('How  many?'), gsm8k('How long?')],
}


@pytest.fixture(scope='module')
def store(tmp_path_factory) -> Store:
    directory, sources = tmp_path_factory.mktemp('data'), []
    for split, rows in FILES.items():
        path = directory / f'{split.replace("/", "-")}.jsonl'
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        sources.append(f'{split}={path}')
    filled = Store(directory / 'store', tuple(sources))
    for name in ('arc_easy', 'arc_challenge', 'gsm8k'):
        filled.prepare(get_dataset(name))
    return filled


def test_every_pair_of_sets_is_compared(store):
    names = ['arc_challenge', 'arc_easy', 'gsm8k']
    assert count_overlaps(store, names, [*reversed(names)]) == [
        Overlap('gsm8k', 'gsm8k', questions=2, shared=1, same_options=1),
        Overlap('arc_easy', 'arc_challenge', questions=4, shared=1, same_options=0),
        Overlap('arc_easy', 'arc_easy', questions=4, shared=3, same_options=1),
    ]


def test_sets_without_a_common_question(store):
    assert count_overlaps(store, ['gsm8k'], ['arc_easy', 'arc_challenge']) == []
    assert count_overlaps(store, [], ['arc_easy']) == count_overlaps(store, ['gsm8k'], []) == []


def test_a_dataset_must_be_prepared(store):
    with pytest.raises(UserError, match="Dataset 'piqa' is not prepared"):
        count_overlaps(store, ['piqa'], ['arc_easy'])

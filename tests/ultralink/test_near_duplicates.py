"""Near-duplicates made by edits are found, and nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.ultralink.text.near_duplicates import MinHashSketches, natural_sort_key
from tests.ultralink.near_duplicate_texts import measure_detection, near_duplicates

TEXT = 'The quick brown fox jumps over the lazy dog near the old stone bridge at noon.'


def texts(language: str, count: int) -> list[str]:
    """Return texts of 80 words or characters, with frequencies like those of a language."""
    random_ = random.Random(language)
    space = '' if language == 'zh' else ' '
    words = [f'word{n}' if space else chr(0x4E00 + n) for n in range(3000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return [space.join(random_.choices(words, weights, k=80)) for _ in range(count)]


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_recall_and_precision(language):
    found = measure_detection(texts(language, 200), language, 100)
    for rate, (recall, precision) in found.items():
        print(f'{language}, {rate:.0%} edited: recall {recall:.3f}, precision {precision:.3f}')
        assert recall >= {0.05: 1, 0.1: 0.99, 0.2: 0.95}[rate]
        assert precision == 1


@settings(deadline=None)
@given(st.permutations([f'en_{n}' for n in (9, 10, 11, 100)]))
def test_the_first_id_is_kept_whatever_the_order(keys):
    assert near_duplicates([(key, TEXT) for key in keys]) == {
        'en_10': 'en_9',
        'en_11': 'en_9',
        'en_100': 'en_9',
    }


def test_case_punctuation_and_spaces_do_not_count():
    other = 'the QUICK brown fox — jumps over the lazy dog\nnear the old stone bridge (at noon)'
    assert near_duplicates([('1', TEXT), ('2', other)]) == {'2': '1'}
    chinese = '北京是中国的首都，也是一座历史名城。'
    assert near_duplicates([('1', chinese), ('2', chinese.replace('，', ' '))]) == {'2': '1'}


def test_code_is_compared_by_words_in_chinese_too():
    code = 'def f(n):\n    return sum(i * i for i in range(n) if i % 2 == 0)'
    other = 'def g(text):\n    words = text.split()\n    return max(words, key=len, default="")'
    rows = [('1', f'计算偶数的平方和。\n{code}'), ('2', f'找出最长的单词。\n{other}')]
    assert near_duplicates(rows) == {}


def test_what_is_left_out_takes_nothing_with_it():
    """The third text is near only the second one, which is dropped because it is near the first."""
    words = [f'word{n}' for n in range(100)]
    rows = [(str(n), ' '.join(words[start : start + 50])) for n, start in enumerate((0, 20, 40))]
    assert near_duplicates(rows[1:]) == {'2': '1'}
    assert near_duplicates(rows) == {'1': '0'}


def test_texts_without_words_resemble_none():
    assert near_duplicates([('1', ''), ('2', '…'), ('3', '')]) == {}
    assert near_duplicates([('1', 'Oui'), ('2', 'oui !')]) == {'2': '1'}


def test_numbers_in_ids_count_as_numbers():
    keys = ['zh_math_10', 'zh_math_9', 'zh_code_11', 'zh_math', 'zh_math_9_b']
    assert sorted(keys, key=natural_sort_key) == [
        'zh_code_11',
        'zh_math',
        'zh_math_9',
        'zh_math_9_b',
        'zh_math_10',
    ]


@pytest.mark.parametrize('threshold', [0, -0.5, 1.5])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(UserError, match='above 0 and at most 1'):
        MinHashSketches().near_duplicates(threshold)

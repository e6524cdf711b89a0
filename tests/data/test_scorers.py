import pytest

from malora_jax.data import Example
from malora_jax.data.scorers import SCORERS


@pytest.mark.parametrize(
    'name, prediction, answer, score',
    [
        ('exact_match', ' B\n', 'B', 1.0),
        ('exact_match', 'b', 'B', 0.0),
        ('exact_match', 'B.', 'B', 0.0),
        ('choice', '(b) wet palms', 'B', 1.0),
        ('choice', 'B', 'B. wet palms', 1.0),
        ('choice', 'Yes, because', 'yes', 1.0),
        ('choice', '**Ägypten**', 'ägypten', 1.0),
        ('choice', '_1_', '1', 1.0),
        ('choice', 'The answer is B', 'B', 0.0),
        ('choice', 'Banana', 'B', 0.0),
        ('choice', '', 'B', 0.0),
        ('choice', '?', '!', 0.0),
        ('choice', 'हिन्दी', 'हाँ', 0.0),
        ('choice', 'हाँ, क्योंकि', 'हाँ', 1.0),
        ('choice', 'ไม่ใช่', 'ไม้', 0.0),
    ],
)
def test_scores(name, prediction, answer, score):
    assert SCORERS[name](prediction, Example('?', answer, {})) == score

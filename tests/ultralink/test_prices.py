"""Tables of prices, and the cost of tokens."""

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.llm.prices import load_prices

TABLE = """
["big-model"]
prompt = 2
completion = 8.0
cached_prompt = 0.5
[small]
prompt = 0.1
completion = 0.4
"""


def test_costs(tmp_path):
    path = tmp_path / 'prices.toml'
    path.write_text(TABLE)
    prices = load_prices(path)
    assert 'small' in prices and 'other' not in prices
    assert prices.cost('big-model', 1_000_000, 0) == 2
    assert prices.cost('big-model', 1_000_000, 500_000, 400_000) == pytest.approx(1.2 + 0.2 + 4)
    assert prices.cost('small', 1_000_000, 0, 1_000_000) == pytest.approx(0.1)
    assert prices.cost('other', 1, 1) is None


def test_without_a_file_no_price_is_known():
    assert load_prices(None).cost('gpt-4o-mini', 1, 1) is None


@pytest.mark.parametrize(
    'text, message',
    [
        ('[m]\nprompt = 1', 'm.completion is missing'),
        ('[m]\nprompt = 1\ncompletion = -1', r'm\.completion is -1; it must be at least 0'),
        ('[m]\nprompt = "1"\ncompletion = 1', r"m\.prompt is '1'; it must be a finite number"),
        ('[m]\nprompt = 1\ncompletion = 1\nbatch = 1', 'batch'),
        ('m = 1', 'm is 1'),
        (
            'm = 0.5',
            r'm is 0\.5; it must be a TOML table, such as m = \{prompt = 0\.15, completion',
        ),
        ('[m', 'not a valid TOML file'),
    ],
)
def test_a_table_that_is_wrong(tmp_path, text, message):
    path = tmp_path / 'prices.toml'
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_prices(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match='there is no such file'):
        load_prices(tmp_path / 'prices.toml')

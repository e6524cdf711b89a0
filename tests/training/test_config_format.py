"""Stored configs of every format are read as the current one, or refused in one sentence."""

import json
import re

import pytest

from malora_jax.errors import UserError
from malora_jax.training.config_format import FORMAT, read_config, write_config

CONFIG = {'seed': 0, 'adapter': {'rank': 8, 'dispatch': True}}


def test_a_config_has_its_format(tmp_path):
    write_config(tmp_path / 'config.json', CONFIG)
    stored = json.loads((tmp_path / 'config.json').read_text())
    assert stored == {'format': FORMAT, **CONFIG}
    assert read_config(tmp_path / 'config.json') == CONFIG


@pytest.mark.parametrize(
    ('dispatch', 'meant'), [('', False), ('batched', True), (True, True), (False, False)]
)
def test_format_1_named_the_product_of_dispatch(tmp_path, dispatch, meant):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'seed': 0, 'adapter': {'rank': 8, 'dispatch': dispatch}}))
    assert read_config(path) == {'seed': 0, 'adapter': {'rank': 8, 'dispatch': meant}}


@pytest.mark.parametrize(
    ('version', 'message'),
    [
        (FORMAT + 1, f'{{}} has format {FORMAT + 1}, which a newer malora_jax wrote; this '),
        (0, f'{{}}: format is 0; it must be a whole number from 1 to {FORMAT}: restore it from '),
        ('2', "{}: format is '2'; it must be a whole number"),
        (True, '{}: format is True; it must be a whole number'),
    ],
)
def test_another_format_is_refused(tmp_path, version, message):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'format': version}))
    with pytest.raises(UserError, match=re.escape(message.format(path))):
        read_config(path)

"""Exported mixtures compute in `transformers` what they compute here."""

import json
import os
import subprocess

import numpy as np
import pytest

from malora_jax.adapters.methods import METHODS, method
from malora_jax.data import get_template
from malora_jax.export.huggingface import write_base
from malora_jax.export.trained_model import TrainedModel
from malora_jax.export.transformers_mixture import write_transformers_mixture
from malora_jax.models import Decoder, preset
from malora_jax.models.config import Llama3Scaling
from malora_jax.models.loading.base_model import LoadedBase
from tests.export.helpers import TOKENS, tiny_base
from tests.helpers.models import logits_of, random_variables, small_method
from tests.helpers.paths import ROOT

READER = os.environ.get('TRANSFORMERS_PYTHON', '')
NEW_TOKENS = 12
# Largest difference of float32 logits, which are up to about 10.
TOLERANCE = 1e-4
LLAMA, QWEN2, QWEN3 = {}, {'qkv_bias': True}, {'qk_norm': True, 'tied': False}
LLAMA3 = {'rope_scaling': Llama3Scaling(8.0, 1.0, 4.0, 16)}
MIXTURES = [name for name in METHODS if method(name).has_router]
CASES = {
    **{f'Llama {name}': (LLAMA, name, {}) for name in MIXTURES},
    'Llama renormalized': (LLAMA, 'malora', {'renormalize': True}),
    'Llama equal': (LLAMA, 'malora', {'equal_gates': True}),
    'Llama router on the subspace': (LLAMA, 'malora', {'router_input': 'first'}),
    'Llama balanced': (LLAMA, 'malora', {'bias_rate': 0.1}),
    'Llama bias in gates': (LLAMA, 'smora', {'bias_in_gates': True}),
    'Llama no width scale': (LLAMA, 'goat', {'width_scale': False}),
    'Llama of version 3': (LLAMA3, 'malora', {}),
    'Qwen2 malora': (QWEN2, 'malora', {}),
    'Qwen2 hydralora': (QWEN2, 'hydralora', {}),
    'Qwen3 malora': (QWEN3, 'malora', {}),
    'Qwen3 molora': (QWEN3, 'molora', {}),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.export,
    pytest.mark.usefixtures('compile_quickly'),
    pytest.mark.skipif(not READER, reason='TRANSFORMERS_PYTHON names no interpreter'),
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict[str, TrainedModel]:
    tiny, path = tiny_base(tmp_path_factory.mktemp('base'))
    found = {}
    for name, (family, base_method, changes) in CASES.items():
        config = preset('tiny', **family)
        model = Decoder(config, small_method(base_method, **changes))
        variables = random_variables(model, seed=3)
        base = LoadedBase(config, variables['params'], tiny.tokenizer)
        template = get_template('chatml')
        found[name] = TrainedModel(base, model, variables, template, base_method, path, 7)
    return found


@pytest.fixture(scope='module')
def there(trained, tmp_path_factory):
    """Return what `transformers` computes, by case; with a case for an adapter alone."""
    home = tmp_path_factory.mktemp('exports')
    exports = {}
    for name, each in trained.items():
        write_transformers_mixture(each, home / name)
        exports[name] = str(home / name), {}
    alone = trained['Qwen3 malora']
    write_transformers_mixture(alone, home / 'alone', adapter_only=True)
    write_base(alone, home / 'its base')
    exports['alone'] = str(home / 'alone'), {'base': str(home / 'its base')}
    cases, results = home / 'cases.json', home / 'results.json'
    cases.write_text(json.dumps({'tokens': TOKENS, 'new_tokens': NEW_TOKENS, 'exports': exports}))
    command = [READER, '-m', 'tests.export.mixtures_in_transformers', str(cases), str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text())


@pytest.mark.parametrize('name', CASES)
def test_logits_and_greedy_tokens_are_the_same(trained, there, name):
    each, found = trained[name], there[name]
    assert found['class'] == f'Mixture{name.partition(" ")[0]}ForCausalLM'
    expected = logits_of(each.model, each.variables, TOKENS)
    plain = logits_of(Decoder(each.model.config), {'params': each.variables['params']}, TOKENS)
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(found['logits'], expected, rtol=0, atol=TOLERANCE)
    # Each greedy token is the best one after those before it.
    row = [*TOKENS[0], *found['greedy']]
    best = logits_of(each.model, each.variables, [row])[0].argmax(axis=-1)
    assert found['greedy'] == best[len(TOKENS[0]) - 1 : -1].tolist()


def test_an_adapter_alone_is_the_same_with_its_base(there):
    assert there['alone'] == there['Qwen3 malora']

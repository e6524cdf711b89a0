"""Exported mixtures, a LoRA and the base model share a batch in vLLM, with the same answers."""

import json
import os
import subprocess

import pytest

from malora_jax.data import get_template
from malora_jax.export import fingerprints
from malora_jax.export.huggingface import write_base
from malora_jax.export.peft import write_peft
from malora_jax.export.trained_model import TrainedAdapter, TrainedModel
from malora_jax.export.vllm_mixture import write_vllm_mixture
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.base_model import LoadedBase
from tests.export.helpers import TOKENS, tiny_base
from tests.helpers.models import logits_of, random_variables, small_method
from tests.helpers.paths import ROOT

READER = os.environ.get('VLLM_PYTHON', '')
# Rows of the batch have different lengths.
PROMPTS, NEW_TOKENS = [TOKENS[0], TOKENS[1][:5]], 12
CASES = {
    'malora': ('malora', {}),
    'molora': ('molora', {'renormalize': True}),
    'hydralora': ('hydralora', {}),
    'lora': ('lora', {}),
}

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not READER, reason='VLLM_PYTHON names no interpreter'),
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict[str, TrainedModel]:
    tiny, path = tiny_base(tmp_path_factory.mktemp('base'))
    # vLLM has no attention for the tiny model's heads of width 16.
    config = preset('tiny', head_width=32)
    found = {}
    for name, (method, changes) in CASES.items():
        model = Decoder(config, small_method(method, **changes))
        variables = random_variables(model, seed=3)
        base = LoadedBase(config, variables['params'], tiny.tokenizer)
        found[name] = TrainedModel(base, model, variables, get_template('chatml'), method, path, 7)
    return found


@pytest.fixture(scope='module')
def there(trained, tmp_path_factory) -> dict[str, list[list[int]]]:
    home = tmp_path_factory.mktemp('exports')
    write_base(trained['lora'], home / 'base')
    for name, each in trained.items():
        if name == 'lora':
            write_peft(each, home / name)
        else:
            fingerprint = fingerprints.base_fingerprint(each.base.params)
            fields = each.method, each.weights, each.step, fingerprint
            write_vllm_mixture(TrainedAdapter(each.model, each.variables, *fields), home / name)
    cases, results = home / 'cases.json', home / 'results.json'
    content = {
        'base': str(home / 'base'),
        'adapters': {name: str(home / name) for name in CASES},
        'prompts': PROMPTS,
        'new_tokens': NEW_TOKENS,
    }
    cases.write_text(json.dumps(content))
    command = [READER, '-m', 'tests.export.mixtures_in_vllm', str(cases), str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(results.read_text())


@pytest.mark.parametrize('name', ['base', *CASES])
def test_greedy_tokens_are_the_same(trained, there, name):
    each = trained['lora' if name == 'base' else name]
    model, variables = each.model, each.variables
    if name == 'base':
        model, variables = Decoder(model.config), {'params': variables['params']}
    for prompt, answer in zip(PROMPTS, there[name], strict=True):
        best = logits_of(model, variables, [[*prompt, *answer]])[0].argmax(axis=-1)
        assert answer == best[len(prompt) - 1 : -1].tolist()


def test_no_two_answer_alike(there):
    assert len({str(answers) for answers in there.values()}) == len(there)

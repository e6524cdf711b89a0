"""Exports and loading of an adapter with parameters for each task: a LoRA for each of them."""

import numpy as np
import pytest

import malora_jax
from malora_jax.errors import UserError
from malora_jax.export.adapter import open_adapter, write_adapter
from malora_jax.export.huggingface import write_merged
from malora_jax.export.mixture import check_mixture
from malora_jax.export.peft import read_peft, write_peft
from malora_jax.inference import load_all
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.base_model import load_base
from malora_jax.serving.engine_runner import EngineRunner
from tests.export.helpers import TOKENS, restored_model, tiny_base
from tests.helpers.models import logits_of

TASKS = ('one', 'two')

pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return restored_model('mtl_lora', *tiny_base(tmp_path_factory.mktemp('base')))


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp('exported') / 'run'
    write_adapter(trained, directory)
    return directory


def expected_logits(trained, task: str) -> np.ndarray:
    return logits_of(trained.model, trained.variables, TOKENS, tasks=TASKS.index(task))


def test_the_adapter_keeps_its_tasks(trained, exported):
    again = open_adapter(exported).load()
    assert again.model == trained.model and again.model.adapter.tasks == TASKS
    for task in TASKS:
        found = logits_of(again.model, again.variables, TOKENS, tasks=TASKS.index(task))
        np.testing.assert_array_equal(found, expected_logits(trained, task))


def test_a_model_is_loaded_for_one_task(trained, exported):
    model = malora_jax.load(exported, task='two')
    assert model.name == 'run:two'
    found = logits_of(model.model, model.variables, TOKENS)
    np.testing.assert_allclose(found, expected_logits(trained, 'two'), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r'each task \(one, two\): choose one with --task=NAME'):
        malora_jax.load(exported)


def test_a_server_offers_a_model_for_each_task(trained, exported):
    models = {each.name: each for each in load_all([exported])}
    assert list(models) == ['run:one', 'run:two']
    for task in TASKS:
        own = models[f'run:{task}']
        found = logits_of(own.model, own.variables, TOKENS)
        np.testing.assert_allclose(found, expected_logits(trained, task), rtol=0, atol=1e-4)
    assert list(EngineRunner(models, 2).models) == list(models)


def test_the_lora_of_a_task_is_merged_and_written_for_peft(trained, tmp_path):
    lora = trained.for_task('two')
    expected = expected_logits(trained, 'two')
    write_merged(lora, tmp_path / 'merged')
    merged = load_base(preset('tiny'), str(tmp_path / 'merged'))
    found = logits_of(Decoder(merged.config), {'params': merged.params}, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    write_peft(lora, tmp_path / 'peft')
    leaves, scale = read_peft(tmp_path / 'peft', trained.model.config)
    assert scale == trained.model.adapter.scale
    np.testing.assert_array_equal(
        leaves['layers/attention/q/up'], lora.variables['adapter']['layers']['attention']['q']['up']
    )
    write_adapter(lora, tmp_path / 'adapter')
    again = malora_jax.load(tmp_path / 'adapter')
    np.testing.assert_array_equal(
        logits_of(again.model, again.variables, TOKENS), logits_of(*lora[1:3], TOKENS)
    )


@pytest.mark.parametrize('export_format', ['transformers', 'vllm', 'static'])
def test_routed_formats_are_refused(trained, export_format):
    with pytest.raises(UserError) as caught:
        check_mixture(trained, export_format)
    assert str(caught.value) == (
        'mtl_lora has no router: export the LoRA of one task, with --format=peft, merged or '
        'adapter and --task=NAME.'
    )

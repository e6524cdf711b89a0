import copy
import json
import pickle
import shutil

import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import (
    FAMILIES,
    MORE_GATES,
    mixture_block,
    random_model,
    tiny_config,
    token_ids,
    write_adapter,
    write_base,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mixture_transformers import families


def assert_same_tensors(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def refused(*args, **options):
    with pytest.raises(ValueError) as caught:
        AutoModelForCausalLM.from_pretrained(*args, **options)
    message = str(caught.value)
    assert '\n' not in message
    return message


# Exports with all weights.


@pytest.mark.parametrize('tied', [False, True], ids=['untied', 'tied'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path, family, tied):
    model = random_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / 'config.json').read_text())
    assert content['architectures'] == [f'Mixture{family}ForCausalLM']
    assert content['model_type'] == f'mixture_{family.lower()}'
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and loaded.name_or_path == str(tmp_path)
    assert not report['missing_keys'] and not report['unexpected_keys']
    assert_same_tensors(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    torch.testing.assert_close(loaded(token_ids(1, 5)).logits, model(token_ids(1, 5)).logits)


def test_shards_are_loaded_bit_for_bit(tmp_path, llama):
    llama.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('model-*.safetensors'))) > 3
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), llama)


def test_the_decoder_is_loaded_without_the_head(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is families.MixtureLlamaModel
    assert_same_tensors(decoder, llama.model)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, 'bfloat16'])
def test_routers_stay_in_float32(tmp_path, llama, dtype):
    llama.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path, dtype=dtype)
        for name, parameter in loaded.named_parameters():
            is_router = name.endswith('router.weight')
            assert (parameter.dtype == torch.float32) == is_router, name
    routers = {name: tensor for name, tensor in llama.state_dict().items() if 'router' in name}
    for name, tensor in routers.items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    loaded.save_pretrained(tmp_path / 'again')
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / 'again'), loaded)


@pytest.mark.parametrize('auto', [AutoModel, AutoModelForCausalLM])
def test_a_new_model_has_routers_in_float32(auto):
    model = auto.from_config(tiny_config('Llama', mixture_block()), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert (parameter.dtype == torch.float32) == name.endswith('router.weight'), name
        # No expert is preferred in a new model.
        assert 'router' not in name or parameter.std().item() == pytest.approx(0.02, rel=0.3)
    # vLLM 0.28 and later reads this; without it, vLLM casts all parameters to the model's dtype.
    assert set(model._keep_in_fp32_modules_strict) == {'router'}


@pytest.mark.parametrize('gates', MORE_GATES.values(), ids=MORE_GATES)
def test_more_gates_are_loaded_and_stay_in_float32(tmp_path, gates):
    model = random_model('Llama', mixture_block(gates=gates))
    model.save_pretrained(tmp_path)
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in loaded.state_dict().items():
        assert (tensor.dtype == torch.float32) == ('router' in name), name
    new = AutoModelForCausalLM.from_config(model.config)
    assert new.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize('gates', MORE_GATES.values(), ids=MORE_GATES)
def test_an_adapter_with_more_gates_is_loaded_with_its_base(tmp_path, gates):
    model = random_model('Llama', mixture_block(gates=gates))
    write_base(model, tmp_path / 'base')
    write_adapter(model, tmp_path / 'adapter')
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / 'adapter'), model)


def test_a_missing_tensor_of_the_mixture_is_refused(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    path = tmp_path / 'model.safetensors'
    tensors = safetensors.torch.load_file(path)
    name = 'model.layers.1.mlp.up_proj.router.weight'
    del tensors[name]
    safetensors.torch.save_file(tensors, path, metadata={'format': 'pt'})
    assert refused(tmp_path) == f"{tmp_path} has no tensor '{name}': export the model again."


@pytest.mark.parametrize('size', ['1GB', '20KB'])
def test_a_variant_is_loaded(tmp_path, llama, size):
    llama.save_pretrained(tmp_path, variant='half', max_shard_size=size)
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path, variant='half'), llama)


def test_a_directory_without_weights_is_refused(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    torch.save(llama.state_dict(), tmp_path / 'pytorch_model.bin')
    assert refused(tmp_path) == (
        f'{tmp_path} has no weights: it needs model.safetensors or mixture.safetensors, or an '
        'index of several such files.'
    )


def test_a_pickle_is_never_read(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    (tmp_path / 'pytorch_model.bin').write_bytes(b'not a pickle')
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    assert_same_tensors(loaded, llama)


def test_a_base_is_refused_for_an_export_with_all_weights(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    assert refused(tmp_path, base='x') == (
        f'{tmp_path} holds all weights: `base` is for an adapter alone.'
    )


def test_a_state_dict_is_loaded(llama):
    loaded = type(llama).from_pretrained(
        None, config=llama.config, state_dict=dict(llama.state_dict())
    )
    assert_same_tensors(loaded, llama)
    tensors = dict(llama.state_dict())
    del tensors['model.layers.0.self_attn.k_proj.up.weight']
    with pytest.raises(ValueError, match=r"^The state_dict has no tensor 'model\.layers\.0\.self_"):
        type(llama).from_pretrained(None, config=llama.config, state_dict=tensors)


# Adapters alone.


@pytest.fixture
def adapter(tmp_path):
    """A model, and an export of its adapter alone next to its base."""
    model = random_model('Qwen2')
    model.generation_config.update(eos_token_id=7)
    write_base(model, tmp_path / 'base')
    write_adapter(model, tmp_path / 'adapter')
    return model, tmp_path / 'adapter', tmp_path / 'base'


@pytest.mark.parametrize('tied', [False, True], ids=['untied', 'tied'])
@pytest.mark.parametrize('family', FAMILIES)
def test_an_adapter_is_loaded_with_its_base(tmp_path, family, tied):
    model = random_model(
        family, mixture_block(targets=['v_proj', 'up_proj']), tie_word_embeddings=tied
    )
    write_base(model, tmp_path / 'base')
    write_adapter(model, tmp_path / 'adapter')
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'adapter')
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path / 'adapter')
    assert_same_tensors(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_an_adapter_may_have_several_files(adapter):
    model, directory, _ = adapter
    path = directory / 'mixture.safetensors'
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    files = {name: f'mixture-0000{name[13]}.safetensors' for name in tensors}
    for file in set(files.values()):
        own = {name: tensors[name] for name in tensors if files[name] == file}
        safetensors.torch.save_file(own, directory / file)
    index = {'metadata': {}, 'weight_map': files}
    (directory / 'mixture.safetensors.index.json').write_text(json.dumps(index))
    assert len(list(directory.glob('mixture-*'))) == 2
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(directory), model)


def test_an_adapter_is_loaded_by_its_own_class(adapter):
    model, directory, _ = adapter
    loaded = type(model).from_pretrained(directory, dtype='auto', use_cache=False)
    assert_same_tensors(loaded, model)
    assert loaded.config.use_cache is False
    assert type(model).from_pretrained(directory, dtype='bfloat16').dtype == torch.bfloat16
    decoder = AutoModel.from_pretrained(directory)
    assert_same_tensors(decoder, model.model)


def test_the_generation_settings_are_those_of_the_adapter(adapter):
    _, directory, _ = adapter
    assert AutoModelForCausalLM.from_pretrained(directory).generation_config.eos_token_id == 7


def test_the_base_may_have_shards_and_another_place(adapter, tmp_path):
    model, directory, base = adapter
    write_base(model, tmp_path / 'shards', max_shard_size='20KB')
    shutil.rmtree(base)
    loaded = AutoModelForCausalLM.from_pretrained(directory, base=tmp_path / 'shards')
    assert_same_tensors(loaded, model)


@pytest.mark.parametrize('argument', ['dtype', 'torch_dtype'])
def test_the_base_may_have_another_dtype(adapter, argument):
    model, directory, base = adapter
    path = base / 'model.safetensors'
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: each.bfloat16() for name, each in tensors.items()}, path)
    loaded = AutoModelForCausalLM.from_pretrained(directory, **{argument: torch.bfloat16})
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {name for name in dtypes if dtypes[name] == torch.float32} == {
        name for name in dtypes if 'router' in name
    }
    assert loaded.dtype == torch.bfloat16
    expected = model.state_dict()['model.layers.0.mlp.up_proj.base.weight'].bfloat16()
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.base.weight, expected)


def test_a_device_map_is_followed(adapter):
    pytest.importorskip('accelerate')
    model, directory, _ = adapter
    for device_map in ('auto', {'': 'cpu'}, {'model': 'cpu', 'lm_head': 'cpu'}):
        loaded = AutoModelForCausalLM.from_pretrained(directory, device_map=device_map)
        assert_same_tensors(loaded, model)


def test_a_loaded_adapter_is_saved_with_all_weights(adapter, tmp_path):
    model, directory, base = adapter
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / 'all')
    shutil.rmtree(base)
    assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / 'all'), model)


def test_another_base_is_refused(adapter):
    model, directory, base = adapter
    expected = model.config.mixture['base']['fingerprint']
    path = base / 'model.safetensors'
    tensors = safetensors.torch.load_file(path)
    tensors['model.norm.weight'] += 1
    safetensors.torch.save_file(tensors, path)
    message = refused(directory)
    start = f'{directory} was trained on other base weights than those in {base} (fingerprint '
    assert message.startswith(f'{start}{expected}, not ') and message.endswith(
        '): pass the base model of the training as `base`, such as an export with --format=base.'
    )


@pytest.mark.parametrize('base', ['/nowhere/base', 'someone/base', 'empty'])
def test_a_base_without_safetensors_is_refused(adapter, tmp_path, monkeypatch, base):
    _, directory, _ = adapter
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    assert refused(directory, base=base) == (
        f'The base model {base} is not found or has no model.safetensors: pass its directory or '
        'Hub name as `base`.'
    )


def change_adapter(directory, change):
    path = directory / 'mixture.safetensors'
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    return path


NAME = 'model.layers.1.mlp.down_proj.up.weight'


def test_an_adapter_without_a_tensor_is_refused(adapter):
    _, directory, _ = adapter
    path = change_adapter(directory, lambda tensors: tensors.pop(NAME))
    assert refused(directory) == f"{path} has no tensor '{NAME}': export the adapter again."


def test_an_adapter_with_a_tensor_of_another_shape_is_refused(adapter):
    _, directory, _ = adapter
    path = change_adapter(directory, lambda tensors: tensors.update({NAME: torch.zeros(3, 2)}))
    assert refused(directory) == (
        f"{path}: tensor '{NAME}' has shape (3, 2); it must have (32, 15): export the adapter "
        'again.'
    )


def test_an_adapter_with_an_extra_tensor_is_refused(adapter):
    _, directory, _ = adapter
    path = change_adapter(directory, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert refused(directory) == (
        f"{path} has a tensor 'extra' that belongs to no adapted layer: export the adapter again."
    )


def test_a_broken_adapter_is_refused(adapter):
    _, directory, _ = adapter
    path = directory / 'mixture.safetensors'
    path.write_bytes(path.read_bytes()[:-9])
    message = refused(directory)
    assert message.startswith(f'{path} is not a complete safetensors file (')
    assert message.endswith('): copy or download it again.')


def test_an_invalid_block_is_refused(adapter):
    _, directory, _ = adapter
    path = directory / 'config.json'
    content = json.loads(path.read_text())
    content['mixture']['version'] = 2
    path.write_text(json.dumps(content))
    assert 'upgrade mixture_transformers' in refused(directory)


# Configurations.


@pytest.mark.parametrize('family', FAMILIES)
def test_a_configuration_survives_copies(tmp_path, family):
    config = tiny_config(family, mixture_block())
    config.save_pretrained(tmp_path)
    for copied in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        type(config).from_dict(config.to_dict()),
        AutoConfig.from_pretrained(tmp_path),
        AutoConfig.for_model(**config.to_dict()),
    ):
        assert type(copied) is type(config)
        assert copied.mixture == config.mixture
        # Only the directory is not part of the content.
        copied.name_or_path = config.name_or_path
        assert copied.to_dict() == config.to_dict()
    assert json.loads((tmp_path / 'config.json').read_text())['mixture'] == config.mixture


def test_a_model_survives_copies(llama):
    for copied in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert_same_tensors(copied, llama)
        torch.testing.assert_close(copied(token_ids(1, 5)).logits, llama(token_ids(1, 5)).logits)


def test_a_default_configuration_has_no_mixture():
    config = AutoConfig.for_model('mixture_llama', num_hidden_layers=1)
    assert config.mixture is None
    with pytest.raises(ValueError, match='has no object `mixture`'):
        AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize('family', FAMILIES)
def test_all_classes_are_registered(family):
    config = getattr(transformers, f'{family}Config')
    assert issubclass(AutoConfig.for_model(f'mixture_{family.lower()}').__class__, config)
    for auto, suffix in ((AutoModel, 'Model'), (AutoModelForCausalLM, 'ForCausalLM')):
        model = auto.from_config(tiny_config(family, mixture_block()))
        assert type(model) is getattr(families, f'Mixture{family}{suffix}')


@pytest.mark.parametrize('auto', [AutoModel, AutoModelForCausalLM])
def test_a_model_builds_its_decoder_once(monkeypatch, auto):
    built = []
    build = transformers.LlamaModel.__init__
    monkeypatch.setattr(
        transformers.LlamaModel,
        '__init__',
        lambda model, config: built.append(model) or build(model, config),
    )
    model = auto.from_config(tiny_config('Llama', mixture_block()))
    assert built == [model.base_model]

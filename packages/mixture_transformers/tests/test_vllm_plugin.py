"""The plugin for vLLM, with a stand-in for vLLM. test_vllm.py needs vLLM itself."""

import importlib
import sys
from types import SimpleNamespace

import pytest
from tiny_models import FAMILIES, mixture_block, tiny_config


@pytest.fixture
def vllm(monkeypatch):
    """Parts of vLLM that the plugin reads."""
    models, checks = {}, {}
    package = SimpleNamespace(
        ModelRegistry=SimpleNamespace(models=models, register_model=models.__setitem__),
        __version__='0.32.0',
        __version_tuple__=(0, 32, 0),
    )
    config = SimpleNamespace(MODELS_CONFIG_MAP=checks, VerifyAndUpdateConfig=object)
    monkeypatch.setitem(sys.modules, 'vllm', package)
    monkeypatch.setitem(sys.modules, 'vllm.config', SimpleNamespace(VllmConfig=object))
    monkeypatch.setitem(sys.modules, 'vllm.model_executor.models.config', config)
    monkeypatch.delitem(sys.modules, 'mixture_transformers.vllm_plugin', raising=False)
    importlib.import_module('mixture_transformers.vllm_plugin').register()
    yield SimpleNamespace(package=package, models=models, checks=checks)
    # The next import uses the installed vLLM again.
    del sys.modules['mixture_transformers.vllm_plugin']


def check_server(vllm, targets, tensor_parallel_size=1, family='Llama'):
    """Make the checks that vLLM makes at the start of a server."""
    server = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=tiny_config(family, mixture_block(targets=targets))),
        parallel_config=SimpleNamespace(tensor_parallel_size=tensor_parallel_size),
    )
    vllm.checks[f'Mixture{family}ForCausalLM'].verify_and_update_config(server)


def test_all_families_are_registered_for_the_transformers_backend(vllm):
    backend = 'vllm.model_executor.models.transformers:TransformersForCausalLM'
    assert vllm.models == {f'Mixture{family}ForCausalLM': backend for family in FAMILIES}


@pytest.mark.parametrize('family', FAMILIES)
def test_a_server_starts(vllm, family):
    check_server(vllm, ['q_proj', 'down_proj'], family=family)
    check_server(vllm, ['q_proj', 'up_proj'], tensor_parallel_size=2, family=family)


@pytest.mark.parametrize('family', FAMILIES)
def test_routers_with_split_inputs_are_refused(vllm, family):
    with pytest.raises(ValueError) as caught:
        check_server(vllm, ['down_proj', 'q_proj', 'o_proj'], 2, family)
    assert str(caught.value) == (
        'The mixture adapts o_proj and down_proj, and vLLM cannot split their routers over '
        'devices: start it without tensor parallelism.'
    )


def test_an_old_vllm_is_refused(vllm):
    vllm.package.__version__, vllm.package.__version_tuple__ = '0.27.1', (0, 27, 1)
    with pytest.raises(ValueError) as caught:
        check_server(vllm, ['q_proj'])
    assert str(caught.value) == (
        'vLLM 0.27.1 would round the routers of the mixture: install vLLM 0.28 or later.'
    )

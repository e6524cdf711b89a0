"""The hook into vLLM, and what happens when vLLM is incompatible."""

import importlib.metadata
import pathlib
import re

import pytest
import tiny_llama
import vllm
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import VllmConfig
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.platforms import current_platform

from malora_vllm import compatibility, mixture, patches, register

CPU, GPU = compatibility.GATED_WRAPPERS
# What enable_mixtures replaces.
PATCHED = (
    (LoRAConfig, 'compute_hash'),
    (LoRAModel, 'from_local_checkpoint'),
    (LoRAModelManager, 'activate_adapter'),
    (PEFTHelper, 'from_dict'),
    (WorkerLoRAManager, '_load_adapter'),
)
# pytest imports this module before an engine of another one changes vLLM.
STOCK = [(owner, name, owner.__dict__[name]) for owner, name in PATCHED]


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    """Start from an unchanged vLLM, and undo the changes of a test."""
    platform = type(current_platform)
    for owner, name, stock in STOCK:
        monkeypatch.setattr(owner, name, stock)
    monkeypatch.setattr(platform, 'get_punica_wrapper', platform.__dict__['get_punica_wrapper'])
    cached = patches.enable_mixtures
    cached.cache_clear()
    yield
    cached.cache_clear()


def test_vllm_is_compatible():
    assert compatibility.find_problem(CPU) is None
    assert compatibility.find_problem(GPU) is None


def test_extras_name_the_same_versions():
    project = (pathlib.Path(__file__).parents[1] / 'pyproject.toml').read_text()
    ranges = set(re.findall(r'vllm(?:-cpu)? >= ([\d.]+), < ([\d.]+)', project))
    versions = (compatibility.OLDEST_VLLM, compatibility.FIRST_UNSUPPORTED_VLLM)
    assert ranges == {tuple('.'.join(map(str, version)) for version in versions)}


def test_registering_twice_hooks_once(monkeypatch):
    platform = type(current_platform)
    monkeypatch.setattr(platform, 'get_punica_wrapper', classmethod(lambda cls: CPU))
    calls = []
    monkeypatch.setattr(patches, 'enable_mixtures', lambda wrapper: calls.append(wrapper) or 'new')
    register()
    register()
    assert platform.get_punica_wrapper() == 'new'
    assert calls == [CPU]


def test_platform_without_the_hooked_function(monkeypatch):
    messages = []
    monkeypatch.setattr(patches._logger, 'error', messages.append)
    monkeypatch.setattr(patches, 'current_platform', object())
    register()
    assert 'has no Platform.get_punica_wrapper: install a supported' in messages[0]


@pytest.mark.parametrize(
    ('version', 'numbers'),
    [('0.26.1', (0, 26, 1)), ('0.33.0', (0, 33, 0)), ('1.0.0', (1, 0, 0)), ('dev', (0, 0, 'dev'))],
)
def test_unsupported_version(monkeypatch, version, numbers):
    monkeypatch.setattr(vllm, '__version__', version)
    monkeypatch.setattr(vllm, '__version_tuple__', numbers)
    assert compatibility.find_problem(CPU) == (
        f'malora_vllm cannot serve mixtures with vLLM {version}: install a version from 0.27 up '
        'to, but not including, 0.33, or another version of malora_vllm.'
    )


@pytest.mark.parametrize('numbers', [(0, 27, 0), (0, 30, 1), (0, 32, 5)])
def test_supported_version(monkeypatch, numbers):
    monkeypatch.setattr(vllm, '__version_tuple__', numbers)
    assert compatibility.find_problem(CPU) is None


def test_missing_function(monkeypatch):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    monkeypatch.delattr(PunicaWrapperCPU, '_apply_shrink')
    assert (
        'has no vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU._apply_shrink: install an'
        in (compatibility.find_problem(CPU))
    )


def test_unknown_wrapper_refuses_mixtures_and_loads_loras():
    wrapper = 'vllm.lora.punica_wrapper.punica_xpu.PunicaWrapperXPU'
    assert patches.enable_mixtures(wrapper) == wrapper
    message = r'LoRA kernels of this platform \(.*PunicaWrapperXPU\): serve them on a CPU'
    with pytest.raises(ValueError, match=message):
        PEFTHelper.from_dict(tiny_llama.adapter_config('softmax'))
    assert PEFTHelper.from_dict(tiny_llama.adapter_config('lora')).r == 8


def test_compiled_models_with_gates_have_another_key():
    lora = LoRAConfig(max_lora_rank=128, lora_dtype='bfloat16')
    configs = VllmConfig(lora_config=lora), VllmConfig()
    stock, stock_without_lora = map(aot_compile_hash_factors, configs)
    patches.enable_mixtures(GPU)
    gated, without_lora = map(aot_compile_hash_factors, configs)
    assert gated != stock
    assert without_lora == stock_without_lora
    assert lora.compute_hash().endswith(f'malora_vllm {importlib.metadata.version("malora_vllm")}')


def test_compiled_models_without_gates_keep_their_key():
    lora = LoRAConfig(max_lora_rank=128)
    stock = lora.compute_hash()
    patches.enable_mixtures('vllm.lora.punica_wrapper.punica_xpu.PunicaWrapperXPU')
    assert lora.compute_hash() == stock


def test_settings_of_adapters():
    patches.patch_settings()
    helper = PEFTHelper.from_dict(tiny_llama.adapter_config('softmax'))
    assert helper.mixture == mixture.parse_mixture(tiny_llama.adapter_config('softmax')['mixture'])
    assert helper.vllm_lora_scaling_factor == 2.0
    assert not hasattr(PEFTHelper.from_dict(tiny_llama.adapter_config('lora')), 'mixture')


def test_settings_that_vllm_refuses():
    patches.patch_settings()
    helper = PEFTHelper.from_dict({**tiny_llama.adapter_config('softmax'), 'bias': 'all'})
    with pytest.raises(ValueError, match='bias is not supported'):
        helper.validate_legal(LoRAConfig(max_lora_rank=128))

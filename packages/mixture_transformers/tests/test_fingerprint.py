import json
import pathlib

import numpy as np
import pytest
import torch
import transformers
from rule import rule_values

from mixture_transformers import base_fingerprint
from mixture_transformers.fingerprint import _sample_positions

CASES = json.loads(pathlib.Path(__file__).with_name('fingerprints.json').read_text())


def tensors_by_rule(config, dtype=torch.float32):
    with torch.device('meta'):
        model = transformers.AutoModelForCausalLM.from_config(config)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {
        name: torch.from_numpy(rule_values(name, shape)).to(dtype) for name, shape in names.items()
    }


def config_of(case):
    return transformers.AutoConfig.for_model(**CASES[case]['config'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_fingerprint_of_malora_jax(case, dtype):
    config = config_of(case)
    tensors = tensors_by_rule(config, dtype)
    assert base_fingerprint(tensors, config.tie_word_embeddings) == CASES[case]['fingerprint']


def test_the_positions_equal_those_of_numpy():
    # For 16374 values, the last position is rounded down if it is computed from the step.
    sizes = [*range(1, 2500), 16374, *(49152 * 576 + offset for offset in range(100)), 2**31 + 11]
    for size in sizes:
        expected = np.linspace(0, size - 1, min(size, 1024)).astype(np.int64)
        np.testing.assert_array_equal(_sample_positions(size).numpy(), expected)


def test_the_fixtures_differ():
    assert len({case['fingerprint'] for case in CASES.values()}) == len(CASES)


@pytest.mark.parametrize(
    'name', ['model.norm.weight', 'model.layers.1.mlp.up_proj.weight', 'lm_head.weight']
)
def test_another_value_changes_it(name):
    tensors = tensors_by_rule(config_of('llama_untied'))
    before = base_fingerprint(tensors, False)
    tensors[name] += 1
    assert base_fingerprint(tensors, False) != before


def test_a_head_that_is_tied_is_ignored():
    tensors = tensors_by_rule(config_of('llama'))
    before = base_fingerprint(tensors, True)
    del tensors['lm_head.weight']
    assert base_fingerprint(tensors, True) == before


def test_a_layer_without_a_tensor_is_named():
    tensors = tensors_by_rule(config_of('llama'))
    del tensors['model.layers.1.mlp.up_proj.weight']
    with pytest.raises(ValueError, match=r"up_proj\.weight': export it again"):
        base_fingerprint(tensors, True)


def test_reads_samples_only():
    class Counting(torch.Tensor):
        """Tensor that counts the values that are read from it."""

        read = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            if function is torch.Tensor.__getitem__:
                cls.read += result.numel()
            return result

    tensors = {
        name: tensor.as_subclass(Counting)
        for name, tensor in tensors_by_rule(config_of('llama')).items()
    }
    assert base_fingerprint(tensors, True) == CASES['llama']['fingerprint']
    assert 0 < Counting.read <= 1024 * 11

"""Write fingerprints.json: fingerprints that malora_jax computes for weights made by a rule.

    python packages/mixture_transformers/tests/make_fingerprints.py

This needs malora_jax, unlike the tests that read the file.
"""

import json
import pathlib
import tempfile

import safetensors.numpy
from malora_jax.export.fingerprints import base_fingerprint
from malora_jax.export.huggingface import config_json
from malora_jax.models import preset
from malora_jax.models.loading import tensor_names
from malora_jax.models.loading.params import load_params
from malora_jax.models.loading.safetensors_files import SafetensorsFiles
from rule import rule_values

VARIANTS = {
    'llama': {},
    'llama_untied': {'tied': False},
    'qwen2': {'qkv_bias': True},
    'qwen3_untied': {'qk_norm': True, 'tied': False},
    'llama_deep': {'num_layers': 12, 'width': 48, 'num_heads': 3, 'num_kv_heads': 1},
}


def main() -> None:
    """Write the file next to this script."""
    cases = {}
    for variant, fields in VARIANTS.items():
        config = preset('tiny', **fields)
        tensors = {
            name: rule_values(name, leaf.tensor_shape)
            for leaf in tensor_names.leaves(config, 'huggingface')
            for name in leaf.tensor_names
        }
        with tempfile.TemporaryDirectory() as directory:
            safetensors.numpy.save_file(tensors, f'{directory}/model.safetensors')
            params = load_params(SafetensorsFiles(pathlib.Path(directory)), config)
        cases[variant] = {'fingerprint': base_fingerprint(params), 'config': config_json(config)}
    path = pathlib.Path(__file__).with_name('fingerprints.json')
    path.write_text(json.dumps(cases, indent=1) + '\n')


if __name__ == '__main__':
    main()

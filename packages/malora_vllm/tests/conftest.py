import os

# Read by vLLM at import: a small cache, no core binding, and this plugin alone.
os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')
os.environ.setdefault('VLLM_CPU_OMP_THREADS_BIND', 'nobind')
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('VLLM_NO_USAGE_STATS', '1')
os.environ['VLLM_PLUGINS'] = 'malora_vllm'
# Engines of this process run in it, without a start of another process.
os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '0'

import pytest
import tiny_llama


@pytest.fixture(scope='session')
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp('model')
    tiny_llama.write_model(directory)
    return directory


@pytest.fixture(scope='session')
def adapter_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp('adapters')
    return {name: tiny_llama.write_adapter(root / name, name) for name in tiny_llama.ADAPTERS}

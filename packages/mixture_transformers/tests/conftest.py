import os

# Set before transformers is imported.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['HF_HUB_DISABLE_PROGRESS_BARS'] = '1'
os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
# Read by vLLM at import: a small cache, no core binding, and this plugin alone.
os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')
os.environ.setdefault('VLLM_CPU_OMP_THREADS_BIND', 'nobind')
os.environ['VLLM_NO_USAGE_STATS'] = '1'
os.environ['VLLM_PLUGINS'] = 'mixture_transformers'
# Engines of this process run in it, without a start of another process.
os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '0'

import pytest
import tokenizers
import torch
import transformers
from tiny_models import VOCABULARY, random_model

import mixture_transformers  # noqa: F401


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope='session')
def llama():
    """A model that no test changes."""
    return random_model('Llama')


@pytest.fixture(scope='session')
def tokenizer():
    """Words w3, w4, … with the ids 3, 4, …"""
    words = ['<pad>', '<s>', '</s>', *(f'w{token}' for token in range(3, VOCABULARY))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<s>')
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token='<pad>',
        bos_token='<s>',
        eos_token='</s>',
        model_max_length=128,
    )

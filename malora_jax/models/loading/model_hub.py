"""Base models on the Hugging Face Hub: repositories of the presets, and files to download."""

import pathlib
import re

from malora_jax import hub

# Repository of each preset on the Hub.
REPO_IDS = {
    'llama2-7b': 'meta-llama/Llama-2-7b-hf',
    'llama2-13b': 'meta-llama/Llama-2-13b-hf',
    'llama2-70b': 'meta-llama/Llama-2-70b-hf',
    'llama3.1-8b': 'meta-llama/Llama-3.1-8B',
    'llama3.1-70b': 'meta-llama/Llama-3.1-70B',
    'llama3.2-1b': 'meta-llama/Llama-3.2-1B',
    'llama3.2-3b': 'meta-llama/Llama-3.2-3B',
    'qwen2.5-0.5b': 'Qwen/Qwen2.5-0.5B',
    'qwen2.5-7b': 'Qwen/Qwen2.5-7B',
    'qwen3-0.6b': 'Qwen/Qwen3-0.6B',
    'qwen3-8b': 'Qwen/Qwen3-8B',
    'mistral-7b': 'mistralai/Mistral-7B-v0.3',
    'smollm2-135m': 'HuggingFaceTB/SmolLM2-135M-Instruct',
    'smollm2-360m': 'HuggingFaceTB/SmolLM2-360M-Instruct',
    'smollm2-1.7b': 'HuggingFaceTB/SmolLM2-1.7B-Instruct',
}

CONFIG_FILES = ('config.json',)
# Exclude pickles, code, and the copies in other formats that some repositories have.
MODEL_FILES = ('model*.safetensors', '*.json', '*.jinja', 'tokenizer.model')


def is_repo_id(text: str) -> bool:
    """Return whether a text has the form of a repository name, owner/name."""
    return re.fullmatch(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', text) is not None


def download(repo_id: str, patterns: tuple[str, ...]) -> pathlib.Path:
    """Download files of a model, unless they are in the local cache.

    Args:
        repo_id: Name of the repository, owner/name.
        patterns: Glob patterns of files in the top directory of the repository.

    Returns:
        The local directory with the files.

    Raises:
        UserError: The name is malformed, the model does not exist, its license was not accepted, or
            the Hub cannot be reached.
    """
    return hub.download_snapshot(
        repo_id,
        patterns,
        repo_type='model',
        alternative='set model.weights to a directory or GGUF file',
        ignore_patterns=['*/*'],
    )

"""The HTTP server refuses adapters and continues to answer other models.

It runs with two devices and without --fully-sharded-loras, so that it must also refuse a mixture
of layers whose inputs are split.
"""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import generation
import openai
import pytest
import tiny_llama

START_SECONDS = 300


def _wait_until_healthy(process, url, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f'{url}/health', timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(log.read_text())


@pytest.fixture(scope='module')
def url(model_dir, adapter_dirs, tmp_path_factory):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'vllm.entrypoints.openai.api_server']
    command += ['--model', model_dir, '--served-model-name', 'base']
    command += ['--host', '127.0.0.1', '--port', str(port)]
    command += ['--tensor-parallel-size', '2', '--max-loras', '3']
    command += ['--lora-modules', f'lora={adapter_dirs["lora"]}']
    for name, value in generation.ENGINE.items():
        command.append(f'--{name.replace("_", "-")}')
        command += [] if value is True else [str(value)]
    environment = {
        **os.environ,
        'VLLM_ALLOW_RUNTIME_LORA_UPDATING': '1',
        'VLLM_ENABLE_V1_MULTIPROCESSING': '1',
        'TORCH_COMPILE_DISABLE': '1',
    }
    log = tmp_path_factory.mktemp('server') / 'log'
    with log.open('w') as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        base = f'http://127.0.0.1:{port}'
        _wait_until_healthy(process, base, log)
        yield base
    finally:
        process.terminate()
        process.wait(timeout=60)


def load(url, name, directory):
    """Ask the server to load an adapter; return the error message, or None."""
    body = json.dumps({'lora_name': name, 'lora_path': str(directory)}).encode()
    request = urllib.request.Request(
        f'{url}/v1/load_lora_adapter', body, {'Content-Type': 'application/json'}
    )
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        return json.load(error)['error']['message']
    return None


def check_answers(url, names):
    """Send all prompts to all models at the same time; compare the answers."""
    client = openai.OpenAI(base_url=f'{url}/v1', api_key='none')

    def complete(job):
        name, prompt = job
        answer = client.completions.create(
            model=name or 'base',
            prompt=list(prompt),
            max_tokens=generation.NUM_TOKENS,
            temperature=0,
            extra_body={'ignore_eos': True, 'return_token_ids': True},
        )
        return answer.choices[0].token_ids

    jobs = [(name, prompt) for prompt in generation.PROMPTS for name in names]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        for job, tokens in zip(jobs, pool.map(complete, jobs), strict=True):
            assert tokens == generation.reference(*job)[0], job


def _set(**fields):
    return lambda config: config['mixture'].update(fields)


def _cut_inputs(tensors):
    for name in tensors:
        if name.endswith('lora_A.weight'):
            tensors[name] = tensors[name][:, :96]


def _drop_layer(tensors):
    for factor in ('lora_A', 'lora_B'):
        del tensors[f'base_model.model.model.layers.1.self_attn.k_proj.{factor}.weight']


# Change of the adapter 'attention', and a part of the refusal.
REFUSALS = {
    'newer_version': (_set(version=2), None, 'mixture.version is 2'),
    'missing_field': (
        lambda config: config['mixture'].pop('top_k'),
        None,
        'adapter_config.json has no mixture.top_k',
    ),
    'invalid_field': (_set(gates='sigmoid'), None, "has mixture.gates = 'sigmoid'"),
    'too_many_experts': (_set(num_experts=100), None, 'mixture.num_experts is 100'),
    'rank_above_the_limit': (_set(rank=40), None, 'start the server with --max-lora-rank 256'),
    'other_shapes': (_set(rank=7), None, 'rank and router_parts require 36 rows'),
    'missing_layer': (None, _drop_layer, 'has no weights of model.layers.1.self_attn.k_proj'),
    'other_base_model': (None, _cut_inputs, 'has 96 columns, but the layer has 128 inputs'),
}


def test_server_refuses_adapters_and_answers_others(url, adapter_dirs, tmp_path):
    for name in ('attention', 'other_lora'):
        assert load(url, name, adapter_dirs[name]) is None
    check_answers(url, (None, 'lora', 'attention'))
    for name, (change_config, change_tensors, expected) in REFUSALS.items():
        directory = tiny_llama.write_adapter(
            tmp_path / name, 'attention', change_config, change_tensors
        )
        assert expected in load(url, name, directory)
    # These adapters are valid, but need --fully-sharded-loras.
    for name in ('softmax', 'renormalized'):
        message = load(url, name, adapter_dirs[name])
        assert 'are split over 2 devices' in message
        assert 'start the server with --fully-sharded-loras' in message
    check_answers(url, (None, 'lora', 'attention', 'other_lora'))

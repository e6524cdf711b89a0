"""vLLM without the plugin refuses a mixture, rather than serve its experts without gates."""

import os
import pathlib
import subprocess
import sys


def test_stock_vllm_refuses_a_mixture(model_dir, adapter_dirs):
    script = pathlib.Path(__file__).parent / 'stock_engine.py'
    run = subprocess.run(
        [sys.executable, script, model_dir, adapter_dirs['lora'], adapter_dirs['softmax']],
        env={**os.environ, 'VLLM_PLUGINS': ''},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert 'LoRA: True' in run.stdout
    refusal = run.stdout.split('mixture: ')[1]
    assert 'Missing required configuration fields' in refusal
    assert "'r'" in refusal and "'lora_alpha'" in refusal

"""Load an ordinary LoRA and a mixture into vLLM without plugins; print what happens.

Usage: stock_engine.py MODEL LORA MIXTURE
"""

import sys

import generation
from vllm import LLM
from vllm.lora.request import LoRARequest

if __name__ == '__main__':
    model, lora, mixture = sys.argv[1:]
    engine = LLM(model, max_loras=2, **generation.ENGINE).llm_engine
    print('LoRA:', engine.add_lora(LoRARequest('lora', 1, lora)))
    try:
        engine.add_lora(LoRARequest('mixture', 2, mixture))
    # An engine with worker processes raises a RuntimeError.
    except (ValueError, RuntimeError) as error:
        print('mixture:', error)

"""Greedy answers of an engine, and their comparison with the float64 reference."""

import functools

import numpy as np
import tiny_llama

NUM_TOKENS = 24
# Lengths differ, so that the tokens of one batch have different positions.
PROMPTS = ((5, 17, 80, 33, 2, 61, 44), (90, 8, 71), (12, 12, 40, 9, 55, 3, 29, 84, 66, 21, 7))
# Largest difference of log-probabilities between float32 and float64.
TOLERANCE = 1e-4
# Settings of all engines. Few cache blocks keep their memory small.
ENGINE = {
    'dtype': 'float32',
    'enable_lora': True,
    'max_lora_rank': 128,
    'max_model_len': 64,
    'max_num_seqs': 16,
    'num_gpu_blocks_override': 64,
}


@functools.cache
def reference(name, prompt):
    """Tokens and log-probabilities of the reference; name is None for the base model."""
    tokens, logprobs, lead = tiny_llama.Reference(name).generate(prompt, NUM_TOKENS)
    # A smaller lead would make the tokens depend on rounding.
    assert lead > 10 * TOLERANCE, (name, prompt, lead)
    return tokens, logprobs


def lora_requests(adapter_dirs, names):
    from vllm.lora.request import LoRARequest

    ids = {name: index for index, name in enumerate(tiny_llama.ADAPTERS, start=1)}
    return {name: LoRARequest(name, ids[name], str(adapter_dirs[name])) for name in names}


def generate(llm, adapter_dirs, jobs):
    """Answers to jobs (adapter name or None, prompt) in one batch: tokens, log-probabilities."""
    from vllm import SamplingParams

    loras = lora_requests(adapter_dirs, {name for name, _ in jobs if name})
    outputs = llm.generate(
        [{'prompt_token_ids': list(prompt)} for _, prompt in jobs],
        SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=1),
        lora_request=[loras.get(name) for name, _ in jobs],
        use_tqdm=False,
    )
    answers = []
    for output in outputs:
        answer = output.outputs[0]
        logprobs = [
            step[token].logprob
            for step, token in zip(answer.logprobs, answer.token_ids, strict=True)
        ]
        answers.append((list(answer.token_ids), logprobs))
    return answers


def compare(jobs, answers):
    """Compare answers with the reference; return the largest difference of log-probabilities."""
    largest = 0.0
    for (name, prompt), (tokens, logprobs) in zip(jobs, answers, strict=True):
        expected_tokens, expected_logprobs = reference(name, prompt)
        assert tokens == expected_tokens, (name, prompt)
        largest = max(largest, np.abs(np.subtract(logprobs, expected_logprobs)).max())
    assert largest < TOLERANCE
    return largest

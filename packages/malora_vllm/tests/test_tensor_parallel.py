"""Tensor parallelism with fully sharded LoRAs."""

import generation

NAMES = (None, 'lora', 'softmax', 'renormalized', 'equal')


def test_fully_sharded_loras(model_dir, adapter_dirs, monkeypatch):
    from vllm import LLM

    # For the workers, which are other processes.
    monkeypatch.setenv('TORCH_COMPILE_DISABLE', '1')
    llm = LLM(
        str(model_dir),
        tensor_parallel_size=2,
        fully_sharded_loras=True,
        max_loras=4,
        **generation.ENGINE,
    )
    jobs = [(name, prompt) for prompt in generation.PROMPTS for name in NAMES]
    answers = generation.generate(llm, adapter_dirs, jobs)
    largest = generation.compare(jobs, answers)
    tokens = sum(len(tokens) for tokens, _ in answers)
    print(f'{tokens} tokens are equal; largest difference of log-probabilities: {largest:.1e}')

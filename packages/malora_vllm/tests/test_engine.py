import generation
import pytest
import torch._dynamo

NAMES = (None, 'lora', 'softmax', 'renormalized', 'equal')


@pytest.fixture(scope='module')
def llm(model_dir):
    from vllm import LLM

    # vLLM compiles a part of the log-probabilities, which takes longer than all answers.
    with torch._dynamo.config.patch(disable=True):
        yield LLM(str(model_dir), max_loras=4, **generation.ENGINE)


def test_adapters_share_a_batch(llm, adapter_dirs):
    # Prompts of one adapter are not next to each other.
    jobs = [(name, prompt) for prompt in generation.PROMPTS for name in NAMES]
    answers = generation.generate(llm, adapter_dirs, jobs)
    largest = generation.compare(jobs, answers)
    tokens = sum(len(tokens) for tokens, _ in answers)
    print(f'{tokens} tokens are equal; largest difference of log-probabilities: {largest:.1e}')
    # The adapters matter: no two of them give the same answer.
    assert len({tuple(tokens) for tokens, _ in answers}) == len(jobs)


def test_each_adapter_alone(llm, adapter_dirs):
    for name in NAMES:
        jobs = [(name, generation.PROMPTS[0])]
        generation.compare(jobs, generation.generate(llm, adapter_dirs, jobs))


def test_evicted_adapters_return_to_other_slots(llm, adapter_dirs):
    # There are more adapters than slots, so that LoRAs and mixtures replace each other.
    orders = (
        ('other_lora', 'attention', None),
        ('softmax', 'lora', 'other_lora', 'equal'),
        ('renormalized', None, 'attention', 'softmax'),
    )
    for names in orders:
        jobs = [(name, prompt) for prompt in generation.PROMPTS[:2] for name in names]
        generation.compare(jobs, generation.generate(llm, adapter_dirs, jobs))

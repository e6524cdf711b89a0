"""Greedy answers of exported mixtures in vLLM, in an environment that has it.

    python -m tests.export.mixtures_in_vllm CASES RESULTS

CASES is a JSON file with the directory of the `base` model, the `adapters` (directories by name),
the `prompts` (rows of ids), and the number of `new_tokens`. RESULTS gets, by name, the ids of the
answers to all prompts; the name `base` stands for the base model. All are generated in one batch.
"""

import json
import pathlib
import sys


def main(cases: str, results: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    given = json.loads(pathlib.Path(cases).read_text('utf-8'))
    loras = {
        name: LoRARequest(name, number, directory)
        for number, (name, directory) in enumerate(given['adapters'].items(), start=1)
    }
    model = LLM(
        given['base'],
        dtype='float32',
        enable_lora=True,
        max_loras=len(loras),
        max_lora_rank=128,
        max_model_len=128,
        max_num_seqs=16,
        num_gpu_blocks_override=64,
        enforce_eager=True,
    )
    jobs = [(name, prompt) for prompt in given['prompts'] for name in ('base', *loras)]
    outputs = model.generate(
        [{'prompt_token_ids': prompt} for _, prompt in jobs],
        SamplingParams(temperature=0, max_tokens=given['new_tokens'], ignore_eos=True),
        lora_request=[loras.get(name) for name, _ in jobs],
        use_tqdm=False,
    )
    found: dict[str, list[list[int]]] = {}
    for (name, _), output in zip(jobs, outputs, strict=True):
        found.setdefault(name, []).append(list(output.outputs[0].token_ids))
    pathlib.Path(results).write_text(json.dumps(found), 'utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])

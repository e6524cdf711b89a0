"""Read exports with transformers and peft, in an environment that has them.

    python -m tests.export.in_transformers CASES RESULTS

CASES is a JSON file. By name, it holds the directory of an `export`, the directory of its `base` if
the export is a peft adapter, `questions`, a `text`, and the number of `new_tokens`. RESULTS gets,
by name, the `prompts` (ids) and `answers` (texts) to the questions that result from the export's
own files, the ids of the `text`, and the versions of the packages.
"""

import json
import pathlib
import sys

import peft
import torch
import torch.distributed.tensor
import transformers


def read(export: str, base: str | None, questions: list[str], text: str, new_tokens: int) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base or export, torch_dtype=torch.float32
    ).eval()
    settings = {}
    if base:
        model = peft.PeftModel.from_pretrained(model, export).eval()
        settings = {'generation_config': transformers.GenerationConfig.from_pretrained(export)}
    prompts, answers = [], []
    for question in questions:
        rendered = tokenizer.apply_chat_template(
            [{'role': 'user', 'content': question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors='pt',
        )
        with torch.no_grad():
            written = model.generate(**rendered, max_new_tokens=new_tokens, **settings)
        count = rendered['input_ids'].shape[1]
        prompts.append(rendered['input_ids'][0].tolist())
        answers.append(tokenizer.decode(written[0, count:], skip_special_tokens=True).strip())
    return {
        'prompts': prompts,
        'answers': answers,
        'text': tokenizer(text)['input_ids'],
        'end': tokenizer.eos_token_id,
    }


def main(cases: str, results: str) -> None:
    given = json.loads(pathlib.Path(cases).read_text())
    found = {name: read(**case) for name, case in given.items()}
    versions = {m.__name__: m.__version__ for m in (transformers, peft, torch)}
    pathlib.Path(results).write_text(json.dumps(found | {'versions': versions}))


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])

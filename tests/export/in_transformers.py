"""Reads exports with transformers and peft, in an environment that has them.

    python -m tests.export.in_transformers CASES RESULTS

CASES is a JSON file: by name, the directory of an `export`, that of its `base` if it is an adapter
of peft's, `questions`, a `text`, and a number of `new_tokens`. RESULTS gets, by name, the `prompts`
(ids) and `answers` (texts) to the questions, as someone gets them who follows the export's files,
the `text`'s ids, and the versions.
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

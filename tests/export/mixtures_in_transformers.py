"""Logits and greedy answers of exported mixtures in `transformers`, in an environment that has it.

    python -m tests.export.mixtures_in_transformers CASES RESULTS

CASES is a JSON file with the `tokens` (rows of ids) and the `exports`: by name, the directory, and
the keyword arguments of `from_pretrained`. RESULTS gets, by name, float32 `logits`, and the ids of
`new_tokens` greedy tokens after the first row.
"""

import json
import pathlib
import sys

import mixture_transformers  # noqa: F401 (registers the models)
import torch
import transformers


def main(cases: str, results: str) -> None:
    given = json.loads(pathlib.Path(cases).read_text('utf-8'))
    tokens = torch.tensor(given['tokens'])
    found = {}
    for name, (directory, arguments) in given['exports'].items():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, **arguments
        ).eval()
        with torch.no_grad():
            logits = model(tokens).logits
            first = tokens[:1]
            written = model.generate(
                first,
                attention_mask=torch.ones_like(first),
                max_new_tokens=given['new_tokens'],
                eos_token_id=None,
                do_sample=False,
            )
        found[name] = {
            'class': type(model).__name__,
            'logits': logits.tolist(),
            'greedy': written[0, first.shape[1] :].tolist(),
        }
    pathlib.Path(results).write_text(json.dumps(found), 'utf-8')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])

"""Make chats of two sizes, and train configs/ultralink_lm_small.py on those that fit its context.

`python -m tests.ultralink.measure_small_context [STEPS]` makes dialogues about documents in English
and French with a stub endpoint: with the default segments, and with the short ones of
docs/guides/ultralink.md. It counts the chats that training cuts, and trains on the short ones.
Prints the counts, and the loss of held-out answers before and after, as JSON.
"""

import asyncio
import contextlib
import json
import pathlib
import sys
import tempfile
from typing import Any

from configs import ultralink_lm_small
from malora_jax import training
from malora_jax.training.config import run_config
from malora_jax.training.setup import build_setup
from malora_jax.ultralink import release_export
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.documents import DocumentsConfig
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.tokens import load_token_counter
from tests.helpers.openai_stub import document, serve_stub
from tests.ultralink.helpers import write_rows

CODES = ('en', 'fr')
DOCUMENTS = 40
# The stub's documents are short.
SMALL_DOCUMENTS = {'min_document_tokens': 300, 'workers': 1}
SETTINGS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    'default': ({'min_segment_tokens': 300}, {}),
    'short': (
        {'segment_tokens': 200, 'min_segment_tokens': 50},
        {'context_tokens': 320, 'question_tokens': 64, 'answer_tokens': 128},
    ),
}


async def make_dialogues(root: pathlib.Path, kind: str, address: str) -> None:
    """Make segments and dialogues in both languages, and export them."""
    counter = load_token_counter('smollm2-135m')
    segmentation, dialogue = SETTINGS[kind]
    outputs = []
    for code in CODES:
        wiki = write_rows(root / f'{code}.jsonl', [document(code, n) for n in range(DOCUMENTS)])
        segments, output = (root / f'{kind}_{stage}_{code}' for stage in ('segments', 'dialogues'))
        config = DocumentsConfig(code, **SMALL_DOCUMENTS, **segmentation)
        await STAGES['documents'].run(StageRun(config, [wiki], segments, token_counter=counter))
        choice = ModelChoice('m', root / f'{output.name}.sqlite', 16, address)
        async with open_model(choice) as model:
            run = StageRun(
                DialoguesConfig(**dialogue), [segments], output, model=model, token_counter=counter
            )
            await STAGES['dialogues'].run(run)
        outputs.append(output)
    release_export.export(outputs, root / kind)


def small_config(folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """Return configs/ultralink_lm_small.py with the files of a folder and fewer, smaller steps."""
    config = ultralink_lm_small.get_config('malora')
    files = tuple(f'{code}={folder}/training/{code}.jsonl' for code in CODES)
    config.data.update({'files': files, 'batch_size': 2, 'held_out': 3, 'validation': 2})
    config.training.update({'steps': steps, 'checkpoint_every': steps, 'evaluate_every': steps})
    return config.to_dict()


def main(steps: int) -> None:
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        with serve_stub() as stub:
            for kind in SETTINGS:
                asyncio.run(make_dialogues(root, kind, stub.address))
        for kind in SETTINGS:
            sizes = build_setup(run_config(small_config(root / kind, steps))).sizes
            values[kind] = {
                'chats': sum(size.examples for size in sizes),
                'cut': sum(size.cut_first_turns for size in sizes),
                'dropped_answers': sum(size.dropped_answers for size in sizes),
            }
        with contextlib.redirect_stdout(sys.stderr):
            training.train(small_config(root / 'short', steps), root / 'run')
        results = json.loads((root / 'run' / 'results.json').read_text())
        tasks = results['tasks'].values()
        values['short'] |= {
            'steps': steps,
            'loss_before': sum(task['loss_before'] for task in tasks) / len(tasks),
            'loss_after': sum(task['loss_after'] for task in tasks) / len(tasks),
        }
    print(json.dumps(values, indent=2))


if __name__ == '__main__':
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)

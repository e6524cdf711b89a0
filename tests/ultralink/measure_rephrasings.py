"""Measure how many rows of MetaMathQA's kind the removal of near-duplicates drops.

`python -m tests.ultralink.measure_rephrasings GSM_PLUS OUTPUT.json` takes a copy of the repository
qtli/GSM-Plus, writes rows with `query` and `response`, and runs the stages `import` and `prune`.
MetaMathQA has several answers to each question of GSM8K, and rephrased questions:

- answers of three MetaMath models (7B, 13B, 70B) to the test questions of GSM8K
- GSM8K questions with a rephrased version (the perturbation "problem understanding")
- GSM8K questions with a version that has other numbers ("numerical substitution")
"""

import asyncio
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from malora_jax import files
from malora_jax.ultralink.prune import PruneConfig
from malora_jax.ultralink.release_import import ImportConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.near_duplicates import THRESHOLD
from tests.ultralink.helpers import write_rows

_MODELS = ('7b', '13b', '70b')
_PERTURBATIONS = {
    'rephrased questions': 'problem understanding',
    'questions with other numbers': 'numerical substitution',
}


def answers(folder: pathlib.Path) -> list[dict[str, str]]:
    """Return the answers of the MetaMath models, question by question."""
    by_model = [
        json.loads((folder / f'results/gsm8k_results/metamath_{model}.json').read_text('utf-8'))
        for model in _MODELS
    ]
    return [
        {
            'query': row['input'].partition('### Instruction:\n')[2].partition('\n\n### Resp')[0],
            'response': row['completion'].strip(),
        }
        for rows in zip(*by_model, strict=True)
        for row in rows
    ]


def perturbed(folder: pathlib.Path, kind: str) -> list[dict[str, str]]:
    """Return questions of GSM8K, each followed by its version with a perturbation."""
    path = folder / 'dataset/gsmplus_testmini.jsonl'
    rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
    return [
        {'query': row[f'{of}question'], 'response': row[f'{of}solution']}
        for row in rows
        if row['perturbation_type'] == kind
        for of in ('seed_', '')
    ]


def count_dropped(rows: Iterable[Any]) -> dict[str, int]:
    """Return the number of rows, and of those that `prune` drops as near-duplicates."""
    with tempfile.TemporaryDirectory() as made:
        path = pathlib.Path(made)
        source = write_rows(path / 'rows.jsonl', rows)
        imported = StageRun(ImportConfig(input=[source]), [source], path / 'imported')
        asyncio.run(STAGES['import'].run(imported))
        config = PruneConfig(math=0, english='prune', math_near_duplicates='remove')
        given = StageRun(config, [path / 'imported'], path / 'pruned')
        total = asyncio.run(STAGES['prune'].run(given)).total
    return {'rows': total.items, 'dropped': total.dropped.get('near-duplicate', 0)}


if __name__ == '__main__':
    gsm_plus, output = map(pathlib.Path, sys.argv[1:])
    kinds = {'several answers to each question': answers(gsm_plus)}
    kinds |= {name: perturbed(gsm_plus, kind) for name, kind in _PERTURBATIONS.items()}
    counts = {name: count_dropped(rows) for name, rows in kinds.items()}
    files.write_json(output, {'threshold': THRESHOLD, 'kinds': counts})
    print(output.read_text('utf-8'))

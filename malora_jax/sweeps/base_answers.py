"""Reuse of the base model's answers to held-out questions among the runs of a sweep.

Training does not change these answers, so they are computed once for the same base model, questions
and evaluation settings. Without reuse, they take a third of the scoring time of a short run.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from malora_jax import files
from malora_jax.runs.records import RECORD_FILE
from malora_jax.training.config_format import read_config

ANSWERS = 'answers_before.jsonl'
# Sections of a config that determine these answers. The seed determines the questions.
_SECTIONS = ('seed', 'model', 'data', 'evaluation')


def copy_base_answers(
    workdir: pathlib.Path, name: str, config: Mapping[str, Any], digests: Mapping[str, Any]
) -> bool:
    """Copy the base model's answers from another run of the sweep, if a matching run has them.

    Args:
        workdir: Directory of the sweep.
        name: Name of the run that needs the answers.
        config: Config of this run, as written in configs/.
        digests: Digests of this run's data, as `training.prepare.data_digests` returns them.

    Returns:
        Whether the run has the answers now.
    """
    target = workdir / name / ANSWERS
    if target.exists():
        return True
    # Converted to JSON and back, because stored configs have lists in place of tuples.
    required = json.loads(json.dumps({section: config[section] for section in _SECTIONS}))
    for source in sorted(workdir.glob(f'*/{ANSWERS}')):
        if source.with_name(RECORD_FILE).exists():  # The answers of a record have no texts.
            continue
        other_config = read_config(source.with_name('config.json'))
        data = source.with_name('data.json')
        same_data = (files.read_json(data, dict) if data.exists() else {}) == digests
        if same_data and all(other_config.get(key) == value for key, value in required.items()):
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_write(target) as temporary:
                shutil.copy(source, temporary)
            return True
    return False

"""The base's answers to held-out questions, which runs of a sweep take from each other.

They are found once for the same base, questions and way of asking: they are a third of what a short
run's scoring takes, and no run changes them.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from malora_jax import files
from malora_jax.training.config_format import read_config

ANSWERS = 'answers_before.jsonl'
# Of a config: what these answers are made of. The seed decides the questions.
_SECTIONS = ('seed', 'model', 'data', 'evaluation')


def take_base_answers(
    workdir: pathlib.Path, name: str, config: Mapping[str, Any], digests: Mapping[str, Any]
) -> bool:
    """Copies the base's answers from another run of the sweep, if there are any that fit.

    Args:
        workdir: of the sweep.
        name: of the run that they are for.
        config: its config, as written in configs/.
        digests: of its data, as `data_digests` gives them.

    Returns:
        Whether the run has them now.
    """
    ours = workdir / name / ANSWERS
    if ours.exists():
        return True
    # As JSON, which has no tuples.
    wanted = json.loads(json.dumps({section: config[section] for section in _SECTIONS}))
    for theirs in sorted(workdir.glob(f'*/{ANSWERS}')):
        found = read_config(theirs.with_name('config.json'))
        data = theirs.with_name('data.json')
        same_data = (files.read_json(data, dict) if data.exists() else {}) == digests
        if same_data and all(found.get(key) == value for key, value in wanted.items()):
            ours.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(ours) as temporary:
                shutil.copy(theirs, temporary)
            return True
    return False

"""UltraLink's pruning experiment: does a model trained on English first need fewer translations?

The experiment (Wang et al., ACL 2024) shows how far translated training data can be pruned: if a
model has learned a skill in English, few translated examples are enough. One arm starts from an
adapter that was trained on English, the other from the base model. Each run then learns 2K to 32K
examples of the other language.

Commands:
    python -m experiments.train --config=configs/ultralink_lm.py --workdir=runs/english \
      --config.model.name=llama2-7b --config.data.files="('en=en_math.jsonl',)"
    python -m experiments.export --workdir=runs/english --output=runs/english/adapter
    python -m experiments.sweep --config=configs/sweeps/ultralink_pruning.py --workdir=runs/pruning

The file of the other language is `zh_math.jsonl` in the current directory. To use another file, set
it for each arm, as in --config.runs.english.overrides.data.files.

The paper's finding for LLaMA-2 7B, with all weights trained: with 2K Chinese examples, MGSM-zh is
45.6% from the English model and 22.0% from the base model. The paper keeps 32K math and 16K code
examples of a language. It does not compare this with training on all translations. To compare 32K
examples with all, set `--config.grid.data.max_per_task="(32000,0)"`, where 0 means all examples.

Hardware: 10 runs of a 7B model, see configs/ultralink_lm.py. Not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/ultralink_lm.py'
    config.seeds = (0,)
    overrides = {'model': {'name': 'llama2-7b'}, 'data': {'files': ('zh=zh_math.jsonl',)}}
    config.runs = {
        'base': {'arg': 'malora', 'overrides': overrides},
        'english': {
            'arg': 'malora',
            'overrides': overrides | {'training': {'start_from': 'runs/english/adapter'}},
        },
    }
    config.grid = {'data': {'max_per_task': (2000, 4000, 8000, 16000, 32000)}}
    config.report = {'metrics': ('loss',), 'plots': ('data.max_per_task',)}
    return config

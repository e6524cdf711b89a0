r"""Study C of the fair comparison: LoRA, MoLoRA and MALoRA on the five intra-domain sets.

Command:
    python -m experiments.prepare --config=configs/fair_real_tasks.py
    python -m experiments.sweep --config=configs/sweeps/fair_real_tasks.py \
      --workdir=runs/fair_real_tasks --records=docs/results/fair_real_tasks --jobs=2

Hardware: 9 runs of 30 minutes on two CPU cores, about 4.5 hours.
"""

from ml_collections import ConfigDict

from configs.sweeps.fair_task_counts import METHODS


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/fair_real_tasks.py'
    config.seeds = (0, 1, 2)
    config.runs = {method: {'arg': method} for method in METHODS}
    config.report = {'table': 'table2'}
    return config

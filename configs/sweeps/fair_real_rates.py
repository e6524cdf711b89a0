r"""Learning rates for the real tasks of the fair comparison, screened at a third of the steps.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_real_rates.py \
      --workdir=runs/fair_real_rates --records=docs/results/fair_real_rates --jobs=2

As in configs/sweeps/fair_rates.py; the chosen rates are `LEARNING_RATES` in
configs/fair_real_tasks.py.

Hardware: 9 runs and their extensions, on two CPU cores about 1.5 hours.
"""

from ml_collections import ConfigDict

from configs import fair_real_tasks
from configs.sweeps.fair_rates import GRID
from configs.sweeps.fair_task_counts import METHODS

# Learning rates beyond the grid, by method.
MORE_RATES: dict[str, tuple[float, ...]] = {}


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    steps = fair_real_tasks.get_config().training.steps // 3
    config = ConfigDict()
    config.base = 'configs/fair_real_tasks.py'
    config.seeds = (0,)
    config.runs = {
        method: {
            'arg': method,
            'overrides': {
                'training': {'steps': steps, 'evaluate_every': steps, 'checkpoint_every': steps},
                'evaluation': {'tasks': ('arc_easy',)},
            },
            'zip': {'optimizer': {'learning_rate': GRID + MORE_RATES.get(method, ())}},
        }
        for method in METHODS
    }
    return config

r"""Learning rates for the real tasks of the fair comparison, screened at a third of the steps.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_real_rates.py \
      --workdir=runs/fair_real_rates --records=docs/results/fair_real_rates --jobs=2

As in configs/sweeps/fair_rates.py; the chosen rates are `LEARNING_RATES` in
configs/fair_real_tasks.py.

Hardware: 13 runs, on two CPU cores about 2 hours.
"""

from ml_collections import ConfigDict

from configs import fair_real_tasks
from configs.sweeps.fair_rates import screening
from configs.sweeps.fair_task_counts import METHODS

# Learning rates beyond the grid, by method.
MORE_RATES: dict[str, tuple[float, ...]] = {'molora': (0.008, 0.016), 'malora': (0.008, 0.016)}


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    steps = fair_real_tasks.get_config().training.steps
    return screening('configs/fair_real_tasks.py', METHODS, {}, MORE_RATES, steps, 'arc_easy')

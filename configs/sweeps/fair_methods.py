r"""Study A of the fair comparison: methods, ablations and controls on the quickstart's tasks.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_methods.py \
      --workdir=runs/fair_methods --records=docs/results/fair_methods --jobs=2

docs/comparison_protocol.md explains the rows, and docs/fair_comparison.md shows the results. The
first seed of every row is trained first.

Hardware: 92 runs of 13 minutes and 18 of 4, on two CPU cores about 21 hours.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import fair_comparison
from configs.fair_comparison import learning_rate
from configs.sweeps.fair_rates import METHODS, TUNED_CONTROLS
from malora_jax.adapters.routers import ROUTER

# Methods that the hypotheses are about; they have five seeds.
MAIN = ('lora', 'molora', 'malora', 'hydralora')
# Table 3 of the paper.
ABLATIONS = (
    'molora_r12',
    'molora_same_down',
    'malora_fixed_shared',
    'malora_symmetric',
    'malora_unshared',
    'malora_fixed_core',
    'malora_shared_up',
)
# Rows with other adapter settings: method, settings, and the row whose learning rate they have.
# Where the gates sum to one, or α makes up for their sum, steps are larger than those of the
# method.
CONTROLS = {
    'molora_frozen_router': ('molora', {'frozen': (ROUTER,)}, 'molora'),
    'molora_equal_gates': ('molora', {'equal_gates': True}, 'molora_renormalized'),
    'molora_alpha': ('molora', {'alpha': 64.0}, 'molora_renormalized'),
    'molora_top1': ('molora', {'top_k': 1}, 'molora'),
    'malora_frozen_router': ('malora', {'frozen': (ROUTER,)}, 'malora'),
    'malora_alpha': ('malora', {'alpha': 96.0}, 'malora_renormalized'),
    'malora_top1': ('malora', {'top_k': 1}, 'malora'),
    'lora_total_rank': ('lora', {'rank': 64}, 'lora'),
    **{name: (*control, name) for name, control in TUNED_CONTROLS.items()},
}
# Experts that are chosen by the task of the question: one LoRA for each task, trained on it alone.
# All six have the rank 70 of the row `lora` together, up to rounding. A step has one row instead of
# the two thirds of a row that each task has in a step of the other runs; the tokens are the same.
# The learning rate is that of the LoRA with the nearest rank.
BY_TASK: dict[str, dict[str, Any]] = {
    'adapter': {'rank': 12},
    'optimizer': {'learning_rate': learning_rate('lora_active_rank')},
    'data': {'batch_size': 1},
    'training': {'steps': 160, 'evaluate_every': 80, 'checkpoint_every': 80},
}


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/fair_comparison.py'
    config.seeds = (0, 1, 2)
    runs: dict[str, dict[str, Any]] = {method: {'arg': method} for method in METHODS + ABLATIONS}
    for method in MAIN:
        runs[method]['seeds'] = (*config.seeds, 3, 4)
    for name, (method, settings, tuned) in CONTROLS.items():
        rates = {'learning_rate': learning_rate(tuned)}
        runs[name] = {'arg': method, 'overrides': {'adapter': settings, 'optimizer': rates}}
    for task in fair_comparison.get_config().data.tasks:
        own = BY_TASK | {'data': BY_TASK['data'] | {'tasks': (task,)}}
        runs[f'by_task-{task}'] = {'arg': 'lora', 'overrides': own}
    config.runs = runs
    return config

r"""Learning rates of the fair comparison: screening of each method, at a third of the steps.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_rates.py \
      --workdir=runs/fair_rates --records=docs/results/fair_rates --jobs=2

The learning rate with the lowest loss on the validation examples is chosen. If it is the lowest or
highest, the next factor of 2 is added to `MORE_RATES` and the sweep repeated. The chosen rates are
`LEARNING_RATES` in configs/fair_comparison.py. Only one task is scored on held-out questions, to
save time; this score is not used.

Hardware: 30 runs and their extensions, on two CPU cores about 2 hours.
"""

from ml_collections import ConfigDict

from configs import fair_comparison

# Methods with a learning rate of their own.
METHODS = (
    'lora',
    'molora',
    'malora',
    'hydralora',
    'asylora',
    'dora',
    'moasylora',
    'malora_small',
    'smora',
    'mlora_heads',
)
# Screened learning rates: a grid for all methods, and the factors of 2 beyond it by method.
GRID = (1e-3, 2e-3, 4e-3)
MORE_RATES: dict[str, tuple[float, ...]] = {}


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    steps = fair_comparison.get_config().training.steps // 3
    config = ConfigDict()
    config.base = 'configs/fair_comparison.py'
    config.seeds = (0,)
    config.runs = {
        method: {
            'arg': method,
            'overrides': {
                'training': {'steps': steps, 'evaluate_every': steps, 'checkpoint_every': steps},
                'evaluation': {'tasks': ('chain_sum',)},
            },
            'zip': {'optimizer': {'learning_rate': GRID + MORE_RATES.get(method, ())}},
        }
        for method in METHODS
    }
    return config

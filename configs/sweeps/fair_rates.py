r"""Learning rates of the fair comparison: screening of each method, at a third of the steps.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_rates.py \
      --workdir=runs/fair_rates --records=docs/results/fair_rates --jobs=2

The learning rate with the lowest loss on the validation examples is chosen. If it is the lowest or
highest, the next factor of 2 is added to `MORE_RATES` and the sweep repeated. The chosen rates are
`LEARNING_RATES` in configs/fair_comparison.py. Only one task is scored on held-out questions, to
save time; this score is not used.

Hardware: 39 runs and their extensions, on two CPU cores about 3.5 hours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
# Controls with a learning rate of their own: method and adapter settings. Their steps differ from
# those of the method: the gates sum to one, or the rank is lower.
TUNED_CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    'molora_renormalized': ('molora', {'renormalize': True}),
    'malora_renormalized': ('malora', {'renormalize': True}),
    'lora_active_rank': ('lora', {'rank': 16}),
}
# Screened learning rates: a grid for all methods, and the factors of 2 beyond it by method.
GRID = (1e-3, 2e-3, 4e-3)
MORE_RATES: dict[str, tuple[float, ...]] = {
    'lora': (5e-4, 2.5e-4),
    'lora_active_rank': (5e-4,),
    'asylora': (5e-4,),
    'dora': (5e-4, 2.5e-4),
    'smora': (5e-4,),
    'mlora_heads': (5e-4, 2.5e-4, 1.25e-4),
    'moasylora': (8e-3,),
    'molora_renormalized': (5e-4,),
    'malora_renormalized': (5e-4,),
}


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    steps = fair_comparison.get_config().training.steps
    base = 'configs/fair_comparison.py'
    return screening(base, METHODS, TUNED_CONTROLS, MORE_RATES, steps, 'chain_sum')


def screening(
    base: str,
    methods: Sequence[str],
    controls: Mapping[str, tuple[str, Mapping[str, Any]]],
    more_rates: Mapping[str, tuple[float, ...]],
    steps: int,
    scored_task: str,
) -> ConfigDict:
    """Return the config of a sweep that screens learning rates.

    Args:
        base: Path of the config file whose learning rates are screened.
        methods: Methods, which are its arguments.
        controls: Method and adapter settings of rows that differ from a method.
        more_rates: Learning rates beyond the grid, by row.
        steps: Steps of the runs to come, of which the screening makes a third.
        scored_task: Task that is scored on held-out questions.
    """
    rows: dict[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in methods}
    rows |= controls
    steps //= 3
    overrides = {
        'training': {'steps': steps, 'evaluate_every': steps, 'checkpoint_every': steps},
        'evaluation': {'tasks': (scored_task,)},
    }
    config = ConfigDict()
    config.base = base
    config.seeds = (0,)
    config.runs = {
        name: {
            'arg': method,
            'overrides': {**overrides, 'adapter': settings},
            'zip': {'optimizer': {'learning_rate': GRID + more_rates.get(name, ())}},
        }
        for name, (method, settings) in rows.items()
    }
    return config

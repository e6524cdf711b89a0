"""Learning rates of LoRA, MoLoRA and MALoRA, so that each method is compared at its own best rate.

The runs of a method differ only in the learning rate and the seed. Therefore they train jointly, on
one copy of the base model, if they fit into memory.

Commands:
    python -m experiments.sweep --config=configs/sweeps/learning_rate.py --workdir=runs/rates
    python -m experiments.sweep --config=configs/sweeps/learning_rate.py --workdir=runs/rates-7b \
      --config.base=configs/intra_domain.py --launcher=slurm

Another grid is --config.grid.optimizer.learning_rate="(0.001,0.01)". For random search, replace
the grid by
    config.random = {
        'draws': 8, 'seed': 0,
        'fields': {'optimizer': {'learning_rate': {'low': 1e-4, 'high': 1e-2, 'scale': 'log'}}},
    }
To select a learning rate, compare the loss on the validation examples (data.validation is their
number per task). Do not select by the scores on the held-out examples, because these scores are the
result to report.

Hardware: 12 runs, each as in configs/quickstart.py: on two CPU cores about 3 hours. Not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/quickstart.py'
    config.seeds = (0,)
    config.runs = {method: {'arg': method} for method in ('lora', 'molora', 'malora')}
    config.grid = {'optimizer': {'learning_rate': (3e-4, 1e-3, 3e-3, 1e-2)}}
    return config

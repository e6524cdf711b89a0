"""Equal budgets on real tasks: the five intra-domain sets, with tuned learning rates.

Command:
    python -m experiments.prepare --config=configs/fair_real_tasks.py
    python -m experiments.train --config=configs/fair_real_tasks.py:malora --workdir=runs/real

The argument is that of configs/intra_domain_small.py. The differences from it are 240 steps, 64
validation examples per task, and a learning rate for each method, tuned by
configs/sweeps/fair_real_rates.py.

Hardware and time: two CPU cores and 4 GB of memory; about 30 minutes.
"""

from ml_collections import ConfigDict

from configs import intra_domain_small

# Learning rates by method, from configs/sweeps/fair_real_rates.py.
LEARNING_RATES = {'lora': 0.002, 'molora': 0.008, 'malora': 0.008}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the argument 'METHOD[,task=NAME]'.

    Raises:
        UserError: The argument has another form, or an unknown method or task.
    """
    config = intra_domain_small.get_config(arg)
    config.data.validation = 64
    config.optimizer.learning_rate = LEARNING_RATES.get(
        config.method, config.optimizer.learning_rate
    )
    config.training.steps = 240
    config.training.evaluate_every = 120
    config.training.checkpoint_every = 120
    return config

"""The intra-domain experiment for two CPU cores: SmolLM2-135M, the same tasks, smaller ranks.

Command:
    python -m experiments.prepare --config=configs/intra_domain_small.py
    python -m experiments.train --config=configs/intra_domain_small.py:malora \
      --workdir=runs/intra_domain_small/malora

The argument is the same as in configs/intra_domain.py. With the paper's ranks, adapters would have
13% of this base model's parameters. The ranks here are about a quarter of the paper's, so adapters
have about 4%. Every method except MALoRA-Small has as many trainable parameters as MoLoRA, within
3%:

    method        rank, shared rank  parameters
    lora          20                 5,414,400
    dora          20                 5,552,640
    asylora       39                 5,391,360
    molora        2                  5,391,360
    moasylora     4                  5,483,520
    malora        3, 8               5,472,000
    malora_small  2, 6               4,083,840

Other differences from the paper: learning rate 1e-3, 120 steps of 4 packed rows of 256 tokens, at
most 200 held-out questions per task, and uniform sampling of the tasks.
"""

from ml_collections import ConfigDict

from configs import intra_domain

# Rank of one expert and rank of the shared subspace, by method.
RANKS = {
    'lora': (20, 0),
    'dora': (20, 0),
    'asylora': (39, 0),
    'molora': (2, 0),
    'moasylora': (4, 0),
    'malora': (3, 8),
    'malora_small': (2, 6),
}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the argument 'METHOD[,task=NAME]'.

    A method that is not in `RANKS` keeps the paper's ranks.

    Raises:
        UserError: The argument has another form, or an unknown method or task.
    """
    config = intra_domain.get_config(arg)
    if config.method in RANKS:
        config.adapter.rank, config.adapter.shared_rank = RANKS[config.method]
    config.model.name = 'smollm2-135m'
    config.model.dtype = 'float32'
    config.data.held_out = 200
    config.data.size_exponent = 0.0
    config.data.sequence_length = 256
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.training.epochs = 0.0
    config.training.steps = 120
    config.training.checkpoint_every = 30
    return config

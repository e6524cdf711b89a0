r"""LoRAs of single tasks as the experts of one mixture, whose routers alone are trained.

Commands, for six LoRAs that configs/quickstart.py:lora trained on one task each and
`experiments.export --format=adapter` exported (docs/guides/combine_loras.md has the whole recipe):
    python -m experiments.train --config=configs/combine_loras.py --workdir=runs/combined \
      --config.training.start_from=exports/word_sequence_reversal,exports/number_filtering,...

The argument is the start of the routers: 'arrow' (default), 'tasks' or 'random'. The adapter is
`molora` with the rank of the LoRAs, 64, and one expert for each task of the quickstart; tokens go
to two experts, whose gates sum to one. For other LoRAs, set adapter.num_experts and adapter.rank,
and the tasks in `data`. The routers have less than 1% of the parameters of the LoRAs.

Hardware and time: two CPU cores and 4 GB of memory; 20 steps of 4 packed rows of 128 tokens take a
few minutes. docs/guides/combine_loras.md shows the scores.
"""

from ml_collections import ConfigDict

from configs import quickstart
from malora_jax.adapters import method
from malora_jax.adapters.routers import ROUTER


def get_config(arg: str = 'arrow') -> ConfigDict:
    """Return the config for the start of the routers named by `arg`."""
    config = quickstart.get_config('molora')
    config.adapter.num_experts = len(config.data.tasks)
    config.adapter.rank = 64
    config.adapter.renormalize = True
    leaves = method('molora').leaf_names
    config.adapter.frozen = tuple(name for name in leaves if name != ROUTER)
    if arg == 'arrow':
        config.adapter.scores = 'absolute'
    config.training.router_start = arg
    config.training.steps = 20
    return config

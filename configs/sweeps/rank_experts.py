"""Ranks and numbers of experts: nine combinations for MALoRA, three for MoLoRA.

MALoRA combines each rank r̄ = 6, 12, 24 with each number of experts N = 2, 4, 8. Two experts are
active for each token, and the subspace is fixed at d = 32. Each run of MoLoRA has as many trainable
parameters, within 3%, as the run of MALoRA in the same column:

    MALoRA r̄, N   6, 2    12, 4   24, 8
    MoLoRA r, N   11, 2   10, 4   15, 8

Commands:
    python -m experiments.sweep --config=configs/sweeps/rank_experts.py --workdir=runs/rank_experts
    python -m experiments.sweep --config=configs/sweeps/rank_experts.py \
      --workdir=runs/rank_experts-llama2 --config.base=configs/intra_domain.py --launcher=slurm

SmolLM2-135M learns ARC-C, ARC-E, PIQA and OpenBookQA, 32 steps of 4 packed rows of 256 tokens; both
seeds of a combination train jointly. docs/sweep_rank_experts.md shows the results.

Hardware: 24 runs of about 32,000 tokens; two CPU cores, 90 minutes, 3.5 to 6.3 GB per process.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/intra_domain_small.py'
    config.seeds = (0, 1)
    overrides = {
        'data': {'tasks': ('arc_challenge', 'arc_easy', 'piqa', 'openbookqa'), 'held_out': 24},
        'training': {'steps': 32},
        'evaluation': {'tasks': ()},  # () = all tasks that are trained on.
    }
    config.runs = {
        'malora': {'arg': 'malora', 'overrides': overrides | {'adapter': {'shared_rank': 32}}},
        'molora': {
            'arg': 'molora',
            'overrides': overrides,
            'zip': {'adapter': {'rank': (11, 10, 15), 'num_experts': (2, 4, 8)}},
        },
    }
    config.grid = {'adapter': {'rank': (6, 12, 24), 'num_experts': (2, 4, 8)}}
    config.subspace_share = 0.0
    config.report = {'plots': ('adapter.num_experts',)}
    return config

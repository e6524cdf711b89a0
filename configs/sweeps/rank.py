"""Ranks: MoLoRA and MALoRA at half to four times their rank, as in the paper's Figure 4(a).

    MoLoRA r             4      8      16     32
    MALoRA r̄, d, β       6, 16, 0.3   12, 32, 1   24, 64, 3.5   48, 128, 5
    MoLoRA, average      53.12  55.33  56.37  55.74
    MALoRA, average      54.28  56.27  56.61  56.69

These are the numbers of Table 11, in %, for LLaMA-2 7B and the tasks of Table 1. For r = 16, the
paper prints 56.19, but the mean of its seven scores is 56.37. With subspace_share = 1/2, the swept
adapter.rank is r, and a run of MALoRA gets r̄ = (2 − 1/2) r and d = r N / 2. β changes with the rank
as in the table.

Commands:
    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank
    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank-llama2 \
      --config.base=configs/inter_domain.py --launcher=slurm

The first command uses the quickstart's SmolLM2-135M and tasks. The second uses the paper's model
and tasks, and shows the paper's numbers next to the results. configs/sweeps/table11.py has the same
runs with one seed, and with a fixed name for each row of the table.

Hardware: 16 runs, each as in configs/quickstart.py: on two CPU cores about 4 hours. Not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/quickstart.py'
    config.seeds = (0, 1)
    config.runs = {method: {'arg': method} for method in ('molora', 'malora')}
    config.zip = {'adapter': {'rank': (4, 8, 16, 32), 'beta': (0.3, 1.0, 3.5, 5.0)}}
    config.subspace_share = 0.5
    config.report = {'table': 'table11', 'plots': ('adapter.rank',)}
    return config

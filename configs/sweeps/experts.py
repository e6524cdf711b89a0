"""Numbers of experts: MoLoRA and MALoRA with four, eight and sixteen, as in Figure 4(b).

The rank is fixed at r = 8; two experts are active for each token. With subspace_share = 1/2,
MALoRA's subspace grows with the experts, d = r N / 2 = 16, 32, 64, and r̄ = 12, so that MALoRA has
about as many parameters as MoLoRA at each N. --config.subspace_share=0.0 keeps d = 32 instead. Two
experts are not included: d would be 8, but it must be at least r̄ = 12.

Commands:
    python -m experiments.sweep --config=configs/sweeps/experts.py --workdir=runs/experts
    python -m experiments.sweep --config=configs/sweeps/experts.py --workdir=runs/experts-llama2 \
      --config.base=configs/inter_domain.py --launcher=slurm

Hardware: 12 runs, each as in configs/quickstart.py: on two CPU cores about 3 hours. Not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/quickstart.py'
    config.seeds = (0, 1)
    config.runs = {method: {'arg': method} for method in ('molora', 'malora')}
    config.grid = {'adapter': {'num_experts': (4, 8, 16)}}
    config.subspace_share = 0.5
    return config

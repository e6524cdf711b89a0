"""Table 12 of the paper: the shared rank and β of MALoRA, on the tasks of Table 2.

    r̄, d       β 0.5   β 1     β 1.25   β 2
    14, 16     78.80   79.08   79.70    78.95
    12, 32     79.64   80.03   80.47    79.24
    10, 48     79.48   79.72   80.79    80.50
    8, 64      78.43   79.09   78.91    78.97

These are averages in %. Runs are named by d and hundredths of β, such as malora_d16_beta050;
MALoRA's row in Table 2 is malora_d32_beta125. After the runs
    python -m experiments.analyze --workdir=runs/table12 --table=table12
prints our results next to them.

Not stated in the paper, and chosen here (configs/intra_domain.py and configs/paper.py say why):
- α: twice the rank of one expert;
- sequence length: 512 tokens, packed; schedule: cosine to zero after the warm-up;
- batch size: the paper has 2 examples per step; here a step is one packed row of about 7 examples;
- sampling weights of the tasks: by their sizes;
- number of runs for each cell: one seed. Most neighboring cells differ by less than a point;
  Table 2 shows how much scores vary between seeds.

Hardware: 16 runs, each as in configs/intra_domain.py. Not yet run at this size.
"""

from ml_collections import ConfigDict

# Rank of one expert by rank of the shared subspace; all pairs have about as many parameters.
RANKS = {16: 14, 32: 12, 48: 10, 64: 8}
BETAS = (0.5, 1.0, 1.25, 2.0)


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/intra_domain.py'
    config.seeds = (0,)
    config.runs = {
        f'malora_d{shared_rank}_beta{round(100 * beta):03}': {
            'arg': 'malora',
            'overrides': {'adapter': {'rank': rank, 'shared_rank': shared_rank, 'beta': beta}},
        }
        for shared_rank, rank in RANKS.items()
        for beta in BETAS
    }
    config.report = {'table': 'table12'}
    return config
